"""The Python clients: one that blocks, and one for asyncio."""

from cynosure.client.asynchronous import AsyncClient
from cynosure.client.blocking import DEFAULT_URL, Client

__all__ = ["DEFAULT_URL", "AsyncClient", "Client"]
