"""A worker's small port: its metrics, and whether it lives and is ready."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from socketserver import TCPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from redis.exceptions import RedisError

from cynosure.addresses import host_and_port
from jobs.starting import InvalidSettings

log = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"


class MetricsPort:
    """Answers GET /metrics, /healthz and /readyz on threads of its own.

    A worker whose engine dies ends, so /healthz answers as long as there is a process; /readyz also takes a worker that
    claims jobs, and a store that answers.

    Args:
        host: address to listen on.
        port: port to listen on.
        registry: the metrics.
        ping: asks the store, and raises `RedisError` if it does not answer.

    Raises:
        InvalidSettings: the address can't be listened on.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ping: Callable[[], None]) -> None:
        self._registry = registry
        self._ping = ping
        self._takes_jobs: Callable[[], bool] = lambda: False
        answers = {"/metrics": self._metrics, "/healthz": self._health, "/readyz": self._readiness}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # for a client that connects and says nothing

            def do_GET(self) -> None:
                status, kind, body = answers.get(self.path.partition("?")[0], _nothing)()
                self.send_response_only(status)  # without the header that tells Python's version
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else AF_INET

            def server_bind(self) -> None:
                TCPServer.server_bind(self)  # HTTPServer's also looks the host's name up, which can take long

            def handle_error(self, request: object, client_address: object) -> None:
                if not isinstance(sys.exception(), OSError):  # clients may hang up
                    log.exception("a request to the metrics' port failed")

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise InvalidSettings(
                f"can't listen on {host_and_port(host, port)}: {error.strerror}. Choose another address with "
                "CYNOSURE_METRICS_HOST or CYNOSURE_METRICS_PORT."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics-port", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ready(self, takes_jobs: Callable[[], bool]) -> None:
        """From now on the worker is ready as long as this is true."""
        self._takes_jobs = takes_jobs

    def _metrics(self) -> tuple[HTTPStatus, str, bytes]:
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _health(self) -> tuple[HTTPStatus, str, bytes]:
        return HTTPStatus.OK, TEXT, b"ok\n"

    def _readiness(self) -> tuple[HTTPStatus, str, bytes]:
        if not self._takes_jobs():
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"The worker takes no jobs: it is starting or stopping.\n"
        try:
            self._ping()
        except RedisError:
            return HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"The store does not answer.\n"
        return HTTPStatus.OK, TEXT, b"ready\n"


def _nothing() -> tuple[HTTPStatus, str, bytes]:
    return HTTPStatus.NOT_FOUND, TEXT, b"This port has /metrics, /healthz and /readyz.\n"
