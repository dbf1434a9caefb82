"""`python -m app.openapi`: the OpenAPI document on standard output."""

from __future__ import annotations

import json
import sys

from app.gateway.settings import GatewaySettings
from app.jobs.settings import StoreSettings
from app.main import create_app


def main() -> None:
    """Print what `GET /openapi.json` answers; no store is needed."""
    document = create_app(GatewaySettings(), StoreSettings()).openapi()
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
