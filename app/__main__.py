"""`python -m app`: serve the gateway."""

from __future__ import annotations

import argparse
import socket
import sys

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.gateway.outbound import OutboundSettings
from app.gateway.settings import GatewaySettings
from app.gateway.webhooks.signing import decoded_secret
from app.listening import CannotListen, listening, port_number
from app.main import create_app
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings, log_to, read_settings, refusing, warn_of_unknown_variables


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


def _check_secret(settings: GatewaySettings) -> None:
    if settings.webhook_secret is not None:
        try:
            decoded_secret(settings.webhook_secret.get_secret_value())
        except ValueError as error:
            raise InvalidSettings(f"CYNOSURE_GATEWAY_WEBHOOK_SECRET: {error}") from None


def main() -> None:
    """Serve the HTTP API in the foreground."""
    parser = argparse.ArgumentParser(prog="cynosure serve", description=main.__doc__)
    parser.add_argument("--host", help="address to listen on (default: CYNOSURE_GATEWAY_HOST, or 127.0.0.1)")
    parser.add_argument("--port", type=port_number, default=8000)
    parser.add_argument("--insecure-no-auth", action="store_true", help="require no API key, whatever the address")
    arguments = parser.parse_args()
    log_to(sys.stderr)
    chosen = {"host": arguments.host, "auth": "off" if arguments.insecure_no_auth else None}
    given = {name: value for name, value in chosen.items() if value is not None}
    with refusing("cynosure serve", InvalidSettings, CannotListen):
        settings, store_settings = read_settings(GatewaySettings, **given), read_settings(StoreSettings)
        read_settings(OutboundSettings)  # the application reads them again when it starts
        _check_secret(settings)
        sockets = listening(settings.host, arguments.port)
    warn_of_unknown_variables(GatewaySettings, OutboundSettings, StoreSettings)
    config = uvicorn.Config(
        create_app(settings, store_settings),
        http=Protocol,
        ws="none",
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main()
