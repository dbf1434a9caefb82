"""Settings of the job store: its address, its limits and how long it keeps records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.!*'()-]+)*/?", re.ASCII)


class MetricsSettings(BaseSettings):
    """Where a gateway or a worker answers Prometheus, from the environment (`CYNOSURE_METRICS_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_METRICS_", frozen=True)

    host: str = Field("127.0.0.1", description="Address of the port for metrics.")
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port that has /metrics without a key, and at workers /healthz and /readyz. `cynosure up` gives it "
        "to the gateway, and the ports after it to the workers. Without it, only the gateway has /metrics, for keys "
        "with the scope `admin`.",
    )


class StoreSettings(BaseSettings):
    """Settings of the job store, from the environment (`REDIS_URL`, `CYNOSURE_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_", frozen=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="redis://HOST:PORT/0, rediss://HOST:PORT/0 or unix:///PATH",
    )
    redis_password: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_PASSWORD", "redis_password"),
        description="Password, instead of one in the address. A user name goes into the address: redis://USER@HOST.",
    )
    redis_password_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_PASSWORD_FILE", "redis_password_file"),
        description="A file that holds the password, such as a container secret.",
    )
    redis_ca_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_CA_FILE", "redis_ca_file"),
        description="Certificates to trust over rediss://; by default the system's.",
    )
    key_prefix: str = Field("cynosure", description="Prefix of every key.")
    result_ttl_s: int = Field(86_400, ge=1, description="Seconds a finished job and its pictures are kept.")
    unfinished_ttl_s: int = Field(7 * 86_400, ge=1, description="Seconds an unfinished job is kept.")
    tombstone_ttl_s: int = Field(
        7 * 86_400,
        ge=1,
        description="Seconds for which the id of a job is remembered after the other two, to report that it expired.",
    )
    lease_s: float = Field(15.0, gt=0, description="Seconds without a heartbeat after which a worker loses its jobs.")
    max_attempts: int = Field(
        8, ge=1, description="Attempts lost to a fault before a job fails with attempts_exhausted."
    )
    max_queued: int = Field(10_000, ge=1, description="Jobs that may wait per model.")
    max_queued_per_key: int = Field(2_000, ge=1, description="Jobs that may wait per API key, over all models.")
    priority_ageing_s: float = Field(60.0, ge=0, description="Seconds of waiting that raise a job by one priority.")
    durability: Literal["relaxed", "fsync"] = Field(
        "relaxed", description="fsync: a 202 waits until the store has synced to disk."
    )
    pictures: str | None = Field(
        None,
        repr=False,  # somebody may write credentials into it
        description="Where finished pictures are kept: s3://BUCKET or s3://BUCKET/PREFIX; endpoint, region and "
        "credentials are in the usual `AWS_…` variables ([storage.md](storage.md)). Without it, in the store.",
    )
    pictures_redirect: bool = Field(
        False, description="Whether clients get pictures from S3 itself, by a redirect to a signed address."
    )
    pictures_endpoint: str | None = Field(
        None, description="Endpoint in these addresses, such as https://s3.example.org, if clients use another one."
    )

    accept_without_worker: bool = Field(
        False,
        description="Whether jobs are accepted for a model that no worker holds at present, but one has held: they "
        "wait for the next one. It is for workers that are started when jobs wait (docs/kubernetes.md).",
    )

    @field_validator("redis_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            is_valid = parts.path.startswith("/") if parts.scheme == "unix" else parts.scheme in ("redis", "rediss")
            is_valid = is_valid and "://" in url and parts.port != 0
        except ValueError:  # a port that is no number, or a bracket that is not closed
            is_valid = False
        if not is_valid:
            raise ValueError("this is not the address of a store")
        return url

    @field_validator("redis_password_file", "redis_ca_file")
    @classmethod
    def _is_readable(cls, path: Path | None) -> Path | None:
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"the file can't be read: {error.strerror}") from None
        return path

    @field_validator("pictures")
    @classmethod
    def _is_bucket(cls, url: str | None) -> str | None:
        if url is not None and not _BUCKET.fullmatch(url):
            raise ValueError("write s3://BUCKET or s3://BUCKET/PREFIX; credentials go into AWS_ACCESS_KEY_ID, …")
        return url

    @field_validator("pictures_endpoint")
    @classmethod
    def _is_endpoint(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/?#@\s]+", url):
            raise ValueError("write scheme and host only, such as https://s3.example.org")
        return url

    @model_validator(mode="after")
    def _redirects_to_s3(self) -> StoreSettings:
        if self.pictures is None and self.pictures_redirect:
            raise ValueError("CYNOSURE_PICTURES_REDIRECT has no effect without CYNOSURE_PICTURES=s3://BUCKET")
        return self

    @model_validator(mode="after")
    def _one_password(self) -> StoreSettings:
        given = [urlsplit(self.redis_url).password, self.redis_password, self.redis_password_file]
        if sum(password is not None for password in given) > 1:
            raise ValueError("give the password in only one of REDIS_URL, REDIS_PASSWORD and REDIS_PASSWORD_FILE")
        return self

    @property
    def password(self) -> str | None:
        """The password from `REDIS_PASSWORD` or the file; `None` if only the address may have one."""
        if self.redis_password_file is not None:
            return self.redis_password_file.read_text().strip()
        return self.redis_password.get_secret_value() if self.redis_password is not None else None

    @property
    def uses_tls(self) -> bool:
        return self.redis_url.startswith("rediss://")

    @property
    def broker_url(self) -> str:
        """The address of the same server in kombu's form. It contains the password: never show it."""
        if self.redis_url.startswith("unix://"):
            return "redis+socket://" + self.redis_url[len("unix://") :]
        if self.password is None:
            return self.redis_url
        parts = urlsplit(self.redis_url)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{quote(parts.username or '')}:{quote(self.password, safe='')}@{host}").geturl()
