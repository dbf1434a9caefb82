"""`python -m app.commands.openapi`: the OpenAPI document on standard output."""

from __future__ import annotations

import json
import sys

from app.gateway.settings import GatewaySettings
from app.main import create_app
from jobs.settings import StoreSettings


def main() -> None:
    """Print the document that `GET /openapi.json` serves; no store is needed."""
    document = create_app(GatewaySettings(), StoreSettings()).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
