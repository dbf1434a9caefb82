"""The gateway's settings."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, HttpUrl, IPvAnyNetwork, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _address(url: HttpUrl) -> HttpUrl:
    if url.username or url.password or url.query is not None or url.fragment is not None:
        raise ValueError("give only scheme, host and path, such as https://img.example.org/draw")
    return url


class GatewaySettings(BaseSettings):
    """Settings of one gateway, from the environment (`CYNOSURE_GATEWAY_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_GATEWAY_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    auth: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether callers need an API key. auto: yes, but on a loopback address only once a key exists.",
    )
    public_url: Annotated[HttpUrl, AfterValidator(_address)] | None = Field(
        None,
        description="Address that clients use, such as https://img.example.org/draw: all links in answers begin so.",
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="Networks of the proxies whose X-Forwarded-Host, -Proto and -Prefix count without a public_url.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names, besides those of loopback, that a gateway without keys accepts requests for."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may call, such as https://studio.example.org."
    )
    model_aliases: dict[str, str] = Field(
        {},
        description="Other names that requests may give to models, such as those that OpenAI's clients send: a JSON "
        'object like {"gpt-image-1": "emoji"}.',
    )
    a1111: bool = Field(True, description="Whether A1111's API is served too, under /sdapi/v1 (docs/clients.md).")
    openai: bool = Field(True, description="Whether OpenAI's API is served too, under /v1 (docs/clients.md).")
    replicate: bool = Field(
        True, description="Whether Replicate's API is served too, /v1/predictions and more (docs/clients.md)."
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
    access_log: bool = Field(False, description="Whether the log gets a line for every request.")
    link_lifetime_s: int = Field(
        3600, ge=1, le=30 * 86_400, description="Seconds for which a signed link to a picture works."
    )
    max_wait_s: int = Field(120, ge=0, description="Longest time that `Prefer: wait` holds an answer.")

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        """An IPv6 address may be written as in a URL."""
        return host.strip("[]")
