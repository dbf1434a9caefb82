"""An S3 server on this machine, as a process that can be killed, paused and restarted."""

from __future__ import annotations

import json
import signal
import sysconfig
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from harness.processes import Process, clean_environment, free_port, wait_until

BUCKET = "pictures"
KEY, SECRET = "cynosure", "a secret of tests"
_PORTS = ("s3", "master", "volume", "filer")


class S3Server(Process):
    """SeaweedFS with one bucket, `BUCKET`, and one user; use it as a context manager, or start and kill it.

    Attributes:
        url: its endpoint.
        settings: environment of the processes that keep their pictures in it.
    """

    def __init__(self, folder: Path) -> None:
        first = free_port(in_a_row=2 * len(_PORTS))
        ports = {name: first + 2 * number for number, name in enumerate(_PORTS)}
        users = folder / "s3.json"
        identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        users.write_text(json.dumps({"identities": [identity]}))
        options = {
            "dir": str(folder),
            "ip": "127.0.0.1",
            "s3.config": str(users),
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "volume.max": "4",
        }
        options |= {f"{name}.port": str(port) for name, port in ports.items()}
        options |= {f"{name}.port.grpc": str(port + 1) for name, port in ports.items()}
        command = [str(Path(sysconfig.get_path("scripts")) / "weed"), "server", "-s3"]
        one_volume = clean_environment(WEED_MASTER_VOLUME_GROWTH_COPY_1="1")  # more take seconds to make
        super().__init__("s3", command + [f"-{name}={value}" for name, value in options.items()], one_volume, folder)
        self.url = f"http://127.0.0.1:{ports['s3']}"
        self.settings = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "CYNOSURE_PICTURES": f"s3://{BUCKET}/of/tests",
        }

    def __enter__(self) -> S3Server:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGCONT)
        self.kill()

    @property
    def bucket(self) -> S3Store:
        """The bucket, to look behind what the processes under test keep in it."""
        return S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0},
        )

    def objects(self, under: str = "") -> list[str]:
        """The keys of all objects, or those under a prefix."""
        return sorted(found["path"] for page in self.bucket.list(under) for found in page)

    def start(self) -> None:
        """Start it, and wait until objects can be written."""
        super().start()
        wait_until(self._answers, what="the S3 server answers")

    def _answers(self) -> bool:
        assert self.is_alive, f"the S3 server has ended: {self.log.read_text()[-2000:]}"
        create = obstore.sign(self.bucket, "PUT", "", timedelta(minutes=1))
        try:
            httpx.put(create, timeout=5, trust_env=False)  # 409 from the second start on
            obstore.put(self.bucket, "ready", b"")
            obstore.delete(self.bucket, "ready")
        except (httpx.TransportError, BaseError, FileNotFoundError):
            return False
        return True
