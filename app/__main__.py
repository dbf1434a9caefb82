"""`python -m app`: serve the gateway."""

from __future__ import annotations

import argparse
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.gateway.settings import GatewaySettings
from app.main import create_app
from jobs.settings import StoreSettings


class Protocol(H11Protocol):
    """HTTP/1.1 only: a request to upgrade is answered as if it did not ask for that (RFC 9110, 7.8)."""

    def _get_upgrade(self) -> bytes | None:
        return None


class Server(uvicorn.Server):
    """On shutdown, first answers clients that wait for a job: the end of the grace period would cut them off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if "store" in self.lifespan.state:
            self.lifespan.state["store"].news.hang_up()
        await super().shutdown(sockets)


def main() -> None:
    """Serve the HTTP API in the foreground."""
    parser = argparse.ArgumentParser(prog="cynosure serve", description=main.__doc__)
    parser.add_argument("--host", help="address to listen on (default: CYNOSURE_GATEWAY_HOST, or 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--insecure-no-auth", action="store_true", help="require no API key, whatever the address")
    arguments = parser.parse_args()
    chosen = {"host": arguments.host, "auth": "off" if arguments.insecure_no_auth else None}
    settings = GatewaySettings(**{name: value for name, value in chosen.items() if value is not None})
    app = create_app(settings, StoreSettings())
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        host=settings.host,
        port=arguments.port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # door/proxies.py reads them
        timeout_graceful_shutdown=10,
    )
    Server(config).run()


if __name__ == "__main__":
    main()
