"""Networks that diffusers has no class for.

The sentence encoder is not re-exported here, because importing transformers takes seconds.
"""

from models.networks.adm import AdmClassifier, AdmUNet

__all__ = ["AdmClassifier", "AdmUNet"]
