"""`python -m benchmarks.gateway.listeners PORT`: follow a job for each line of standard input, in a process of its own.

Prints a line when all have their first event, and ends with standard input.
"""

from __future__ import annotations

import asyncio
import sys

AT_ONCE = 64  # connections that are opened at a time


async def follow(port: int, job_id: str, opening: asyncio.Semaphore, streams: list[asyncio.StreamWriter]) -> None:
    async with opening:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**14)
        streams.append(writer)  # or it would be collected, and closed
        writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{job_id}: {status!r}")
        await reader.readuntil(b"event: status")
    asyncio.create_task(drop(reader))  # noqa: RUF006  kept by the connection


async def drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(2**14):
        pass


async def main() -> None:
    port, ids = int(sys.argv[1]), iter(sys.stdin.readline, "\n")
    opening, streams = asyncio.Semaphore(AT_ONCE), list[asyncio.StreamWriter]()
    await asyncio.gather(*(follow(port, job_id.strip(), opening, streams) for job_id in ids))
    print(len(streams), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
