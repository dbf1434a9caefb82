"""Networks that diffusers has no class for.

The sentence encoder is imported from its own module, for transformers takes seconds.
"""

from models.networks.adm import AdmClassifier, AdmUNet

__all__ = ["AdmClassifier", "AdmUNet"]
