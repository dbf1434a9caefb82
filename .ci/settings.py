"""Print docs/settings.md: every setting, from the classes that read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, HttpUrl, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from app.gateway.outbound import OutboundSettings
from app.gateway.settings import GatewaySettings
from jobs.logs import LogSettings
from jobs.settings import MetricsSettings, StoreSettings
from workers.settings import ReviewSettings, WorkerSettings

HEAD = """# Settings

All settings are environment variables, read when a process starts. A list is written as JSON, for example
`CYNOSURE_OUTBOUND_PORTS='[443, 8443]'`. A value that can't be read or is out of range ends the process. If a command
has an option for the same thing (`cynosure COMMAND --help`), the option wins.

`make settings` writes this page from the code.
"""
READERS: tuple[tuple[type[BaseSettings], str, str], ...] = (
    (
        StoreSettings,
        "The job store",
        "Gateways, workers and `cynosure keys` read these. Give all of them the same values.",
    ),
    (GatewaySettings, "Gateways", "`cynosure serve` reads these, and so does the gateway that `cynosure up` starts."),
    (MetricsSettings, "Metrics", "Gateways and workers read these: see [operations.md](operations.md)."),
    (OutboundSettings, "Calls to webhooks", "Gateways read these."),
    (LogSettings, "Logs", "`cynosure up`, gateways and workers read these."),
    (WorkerSettings, "Workers", "`cynosure worker` reads these, and so do the workers that `cynosure up` starts."),
    (ReviewSettings, "Reviews of pictures", "Workers read these: see [reviews.md](reviews.md)."),
)
OTHERS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    (
        "The command line",
        "`cynosure generate` and the other commands that talk to a server read these.",
        {
            "`CYNOSURE_URL`": "Address of the server, `http://127.0.0.1:8000` by default; without a scheme, `http`.",
            "`CYNOSURE_API_KEY`": "API key, if the server requires one.",
        },
    ),
    (
        "Libraries",
        "Workers read these, and so do the commands that draw or measure without a server.",
        {
            "`XDG_CACHE_HOME`": "Measured batch sizes are kept in its `cynosure/calibration`; `~/.cache` by default.",
            "`MKL_CBWR`": "Order of MKL's sums; `AUTO,STRICT` if unset. With another value the last bits may differ.",
            "`ONEDNN_PRIMITIVE_CACHE_CAPACITY`": "Kernels that oneDNN keeps; 16384 if unset.",
            "`ONEDNN_MAX_CPU_ISA`, `DNNL_MAX_CPU_ISA`, `ATEN_CPU_CAPABILITY`, `MKL_ENABLE_INSTRUCTIONS`": (
                "Limits on the CPU's instructions. Batch sizes are measured anew for each combination."
            ),
            "`HF_HOME`, `HF_TOKEN` and others": (
                "Folder of packs from the hub, and the token for private ones: see [huggingface_hub]"
                "(https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables)."
            ),
        },
    ),
    (
        "Traces",
        "Gateways and workers read these, and the others of [OpenTelemetry]"
        "(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).",
        {
            "`OTEL_EXPORTER_OTLP_ENDPOINT`": (
                "Address of a collector, such as `http://127.0.0.1:4318`. Without it no traces are made."
            ),
            "`OTEL_EXPORTER_OTLP_PROTOCOL`": "Only `http/protobuf`, the default.",
            "`OTEL_SERVICE_NAME`": "The service's name; `cynosure-gateway` and `cynosure-worker` if unset.",
        },
    ),
    (
        "Pictures in S3",
        "Gateways and workers read these if `CYNOSURE_PICTURES` is set ([storage.md](storage.md)), and the others of "
        "[obstore](https://developmentseed.org/obstore/latest/api/store/aws/#obstore.store.S3Config).",
        {
            "`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`": (
                "Credentials. Without them, those of the machine's or container's role on AWS."
            ),
            "`AWS_REGION`": "The bucket's region; `us-east-1` by default.",
            "`AWS_ENDPOINT_URL`": "Address of a server that is not Amazon's, such as `https://s3.example.org`.",
        },
    ),
    (
        "Docker Compose",
        "Only `docker-compose.yml` and `deploy/compose.tls.yml` read these.",
        {
            "`CYNOSURE_BIND`": "Address on which the gateway's port is published; `127.0.0.1` by default.",
            "`CYNOSURE_PORT`": "That port; `8000` by default.",
            "`CYNOSURE_DOMAIN`": "Domain under which this machine is reached, for HTTPS (deploy/compose.tls.yml).",
            "`CYNOSURE_GRAFANA_PORT`": "The board's port, for `--profile monitoring`; `3000` by default.",
            "`CYNOSURE_STORE_MEMORY`": "Memory for the store's data; `1gb` by default. A full store refuses writes.",
            "`CYNOSURE_STORE_CONTAINER_MEMORY`": "Memory of the store's container; `2g` by default.",
            "`CYNOSURE_GATEWAY_MEMORY`": "Memory of the gateway's container; `1g` by default.",
            "`CYNOSURE_WORKER_MEMORY`": "Memory of each worker's container; `4g` by default.",
        },
    ),
)
TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    SecretStr: "secret",
    HttpUrl: "address",
    IPvAnyNetwork: "network",
}


def page() -> str:
    """The document."""
    return "\n".join([HEAD, *(line for one in READERS for line in _settings(*one)), *_others()])


def _settings(settings: type[BaseSettings], title: str, readers: str) -> Iterator[str]:
    yield f"## {title}\n\n{readers}\n\n| variable | type | default | meaning |\n|---|---|---|---|"
    for name, field in settings.model_fields.items():
        default = "" if field.default is None else f"`{_written(field.default)}`"
        kind = ", ".join([_kind(field.annotation), *_limits(field)])
        yield f"| `{_variable(name, field, settings)}` | {kind} | {default} | {field.description} |"
    yield ""


def _others() -> Iterator[str]:
    for title, readers, rows in OTHERS:
        yield f"## {title}\n\n{readers}\n\n| variable | meaning |\n|---|---|"
        yield from (f"| {names} | {meaning} |" for names, meaning in rows.items())
        yield ""


def _variable(name: str, field: FieldInfo, settings: type[BaseSettings]) -> str:
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"{settings.model_config['env_prefix']}{name}".upper()


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), [one for one in get_args(annotation) if one not in (NoneType, Ellipsis)]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is dict:
        return "JSON object"
    if origin in (tuple, frozenset):
        return "JSON list of " + (
            "networks" if get_origin(inner[0]) else f"{TYPES[inner[0]]}s".replace("text", "string")
        )
    if origin in (Union, UnionType):
        return _kind(inner[0])
    return TYPES[annotation]


def _limits(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (value := getattr(limit, name, None)) is not None:
                yield f"{sign} {value}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(sorted(value) if isinstance(value, frozenset) else value, default=str)


if __name__ == "__main__":
    sys.stdout.write(page())
