"""Networks that diffusers has no class for."""

from models.networks.adm import AdmClassifier, AdmUNet

__all__ = ["AdmClassifier", "AdmUNet"]
