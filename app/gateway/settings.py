"""The gateway's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """Settings of one gateway, from the environment (`CYNOSURE_GATEWAY_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_GATEWAY_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    auth: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether callers need an API key. auto: yes, but on a loopback address only once a key exists.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names, besides those of loopback, that a gateway without keys accepts requests for."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may call, such as https://studio.example.org."
    )
    max_json_parts: int = Field(50_000, ge=100, description="Most commas, braces and brackets in a JSON body.")
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1024, description="Largest request body; two base64 pictures fit.")
    max_batch_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Largest body of POST /batches.")
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs webhooks: whsec_ and base64 of 24 bytes or more. Without it, none are sent.",
    )
    webhook_retry_s: tuple[float, ...] = Field(
        (5, 30, 120, 600, 1800, 3600, 10_800, 28_800),
        description="Seconds before each further attempt to deliver a webhook; after the last, it has failed.",
    )
    max_wait_s: int = Field(120, ge=0, description="Longest time that `Prefer: wait` holds an answer.")

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        """An IPv6 address may be written as in a URL."""
        return host.strip("[]")
