"""`python -m app`: serve the gateway."""

from __future__ import annotations

import argparse

import uvicorn

from app.gateway.settings import GatewaySettings
from app.jobs.settings import StoreSettings
from app.main import create_app


def main() -> None:
    """Serve the HTTP API in the foreground."""
    parser = argparse.ArgumentParser(prog="cynosure serve", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    app = create_app(GatewaySettings(), StoreSettings())
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
