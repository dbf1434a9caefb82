"""Which keys of a model folder's configuration files are honoured; files with others are refused.

A list names every key that the installed class knows. A key is decided by how diffusers' pipeline uses it: if the class
builds itself by it and is called here as there, or our code reads it, any value is served; else only the values that
change nothing. What no list names is refused, so that no picture is drawn by half of a configuration.
"""

from models.configs.keys import Keys, check_keys, defaults, every_key
from models.configs.pipelines import check_index

__all__ = ["Keys", "check_index", "check_keys", "defaults", "every_key"]
