"""Cynosure: guided diffusion as a service. The public face: contract, clients and command line."""

from cynosure.client import Client
from cynosure.client.asynchronous import AsyncClient
from cynosure.client.attempts import Retries
from cynosure.contract import (
    GenerateRequest,
    GuidanceMode,
    Job,
    JobStatus,
    OutputFormat,
    Preview,
    Progress,
    SweepRequest,
)
from cynosure.drawn import Drawn
from cynosure.errors import CynosureError

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "CynosureError",
    "Drawn",
    "GenerateRequest",
    "GuidanceMode",
    "Job",
    "JobStatus",
    "OutputFormat",
    "Preview",
    "Progress",
    "Retries",
    "SweepRequest",
]
