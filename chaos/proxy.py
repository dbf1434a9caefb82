"""A TCP proxy that simulates network faults: it resets, delays, truncates, and swallows bytes silently."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from dataclasses import dataclass

CHUNK = 65_536


@dataclass
class Weather:
    """The network's faults.

    Attributes:
        delay_s: delay of every chunk.
        cut: share of chunks of which only half is forwarded before the connection is reset.
        silent: bytes are swallowed but no connection is closed, as when a cable is pulled.
        closed: new connections are aborted.
    """

    delay_s: float = 0.0
    cut: float = 0.0
    silent: bool = False
    closed: bool = False


class Proxy:
    """Forwards `port` to the store, on a separate thread; `weather` may be changed at any time.

    Args:
        target_port: the store's port.
        seed: decides where connections are cut.
        tls: if given, the proxy terminates TLS; the connection to the store stays plain.

    Attributes:
        target_port: where new connections lead.
        connections: number of accepted connections.
        resets: number of reset connections.
    """

    def __init__(self, target_port: int, *, seed: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.weather = Weather()
        self.connections = 0
        self.resets = 0
        self.target_port = target_port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset_all(self) -> None:
        """Reset all open connections."""
        self._loop.call_soon_threadsafe(lambda: self._reset(set(self._writers)))

    def close(self) -> None:
        """End all connections and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._reset(set(self._writers))
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def _reset(self, writers: set[asyncio.StreamWriter]) -> None:
        for writer in writers:
            self.resets += 1
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.weather.closed:
            writer.transport.abort()
            return
        self.connections += 1
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            pair = {writer, far_writer}
            self._writers |= pair
            try:
                await asyncio.gather(self._pump(reader, far_writer, pair), self._pump(far_reader, writer, pair))
            finally:
                self._writers -= pair
                for each in pair:
                    each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: set[asyncio.StreamWriter]
    ) -> None:
        while chunk := await reader.read(CHUNK):
            if self.weather.delay_s:
                await asyncio.sleep(self.weather.delay_s)
            if self.weather.silent:
                continue
            if self.weather.cut and self._random.random() < self.weather.cut:
                writer.write(chunk[: len(chunk) // 2])
                with contextlib.suppress(OSError):
                    await writer.drain()
                self._reset(pair)
                return
            writer.write(chunk)
            await writer.drain()
        writer.transport.abort()
