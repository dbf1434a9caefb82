"""`python -m app`: serve the gateway."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from typing import Annotated, Any

import typer
import uvicorn

from app.gateway.outbound import OutboundSettings
from app.gateway.settings import GatewaySettings
from app.gateway.webhooks.signing import decoded_secret
from app.listening import CannotListen, listening
from app.main import create_app
from app.protocol import Protocol
from cynosure.addresses import host_and_port
from jobs import traces
from jobs.pictures.opening import check_pictures
from jobs.settings import MetricsSettings, StoreSettings
from jobs.starting import InvalidSettings, log_to, read_settings, refusing, warn_of_unknown_variables

log = logging.getLogger("app")
GC_OBJECTS = 10_000  # that are made before the collector looks at the young ones; a request makes some hundreds
METRICS_OPTIONS = "CYNOSURE_METRICS_HOST or CYNOSURE_METRICS_PORT"


class Server(uvicorn.Server):
    """On shutdown, first answers clients that wait for a job: the end of the grace period would cut them off."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there now stays. With Python's defaults the collector, which goes through all of it again and
            # again, takes a fifth of the time of a submit.
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_OBJECTS)
            addresses = (host_and_port(*each.getsockname()[:2]) for each in sockets or ())
            log.info("the gateway listens on %s", ", ".join(addresses))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("the gateway is stopping")
        if "store" in self.lifespan.state:
            self.lifespan.state["store"].news.hang_up()
        await super().shutdown(sockets)
        await asyncio.to_thread(traces.stop)
        log.info("the gateway has stopped")


def _check_secret(settings: GatewaySettings) -> None:
    if settings.webhook_secret is not None:
        try:
            decoded_secret(settings.webhook_secret.get_secret_value())
        except ValueError as error:
            raise InvalidSettings(f"CYNOSURE_GATEWAY_WEBHOOK_SECRET: {error}") from None


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    host: Annotated[
        str | None, typer.Option(help="address to listen on", show_default="CYNOSURE_GATEWAY_HOST, or 127.0.0.1")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    share_port: Annotated[
        bool, typer.Option("--share-port", help="let other gateways that share the port listen on it, too")
    ] = False,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="require no API key, whatever the address")
    ] = False,
) -> None:
    """Run the gateway only: the HTTP API, in the foreground."""
    chosen: dict[str, Any] = {"host": host, "auth": "off" if insecure_no_auth else None}
    given = {name: value for name, value in chosen.items() if value is not None}
    with refusing("cynosure serve", InvalidSettings, CannotListen):
        log_to(sys.stderr)
        settings, store_settings = read_settings(GatewaySettings, **given), read_settings(StoreSettings)
        metrics = read_settings(MetricsSettings)
        read_settings(OutboundSettings)  # the application reads them again when it starts
        _check_secret(settings)
        check_pictures(store_settings)
        traces.start("cynosure-gateway")
        sockets = listening(settings.host, port, shared=share_port)
        if metrics.port is not None:
            sockets += listening(metrics.host, metrics.port, options=METRICS_OPTIONS)
    warn_of_unknown_variables(GatewaySettings, MetricsSettings, OutboundSettings, StoreSettings)
    config = uvicorn.Config(
        create_app(settings, store_settings, metrics_port=metrics.port),
        http=Protocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # door/proxies.py reads them
        timeout_graceful_shutdown=10,
    )
    Server(config).run(sockets=sockets)


if __name__ == "__main__":
    command(prog_name="cynosure serve")
