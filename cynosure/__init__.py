"""Cynosure: guided diffusion as a service. The public face: contract, client and command line."""

__version__ = "0.1.0"
