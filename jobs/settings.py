"""Settings of the job store: its address, its limits and how long it keeps records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cynosure.addresses import host_and_port

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
        "to the first gateway, and the ports after it to the others and then the workers. Without it, only gateways "
        "have /metrics, for keys with the scope `admin`.",
    )


SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_SENTINEL_PORT = 26379


@dataclass(frozen=True)
class SentinelAddress:
    """Where Sentinels tell which server of a service is the master, and how to log in there.

    Attributes:
        hosts: names and ports of the Sentinels.
        service: name under which they watch the master.
        database: number of the master's database.
        user: the master's user, if not its default one.
        password: the master's password, if the address has one.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int
    user: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Read redis+sentinel://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DATABASE].

        Raises:
            ValueError: it has another form.
        """
        authority, _, path = url.partition("://")[2].partition("/")
        login, _, hosts = authority.rpartition("@")
        user, _, password = login.partition(":")
        service, _, database = path.partition("/")
        try:
            parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
            is_valid = all(part.hostname and part.port != 0 and not part.path for part in parts)
            is_valid = is_valid and bool(service) and (database or "0").isdecimal()
        except ValueError:  # a port that is no number, or a bracket that is not closed
            is_valid = False
        if not is_valid:
            raise ValueError("name the Sentinels and their service: redis+sentinel://HOST:26379,HOST:26379/SERVICE/0")
        return cls(
            tuple((str(part.hostname), part.port or _SENTINEL_PORT) for part in parts),
            unquote(service),
            int(database or 0),
            unquote(user) or None,
            unquote(password) or None,
        )


class StoreSettings(BaseSettings):
    """Settings of the job store, from the environment (`REDIS_URL`, `CYNOSURE_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_", frozen=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="redis://HOST:PORT/0, rediss://HOST:PORT/0 (TLS), unix:///PATH or, for the master that Sentinels "
        "name, redis+sentinel://HOST:26379,HOST:26379/SERVICE/0 (rediss+sentinel:// for TLS).",
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
    redis_sentinel_password: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_SENTINEL_PASSWORD", "redis_sentinel_password"),
        description="Password of the Sentinels themselves, if they have one.",
    )
    redis_sentinel_password_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("REDIS_SENTINEL_PASSWORD_FILE", "redis_sentinel_password_file"),
        description="A file that holds that password.",
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
    durability: Literal["relaxed", "replicated", "fsync"] = Field(
        "relaxed",
        description="fsync: a 202 waits until the store has synced to disk. replicated: until a replica has the job.",
    )
    pictures: str | None = Field(
        None,
        repr=False,  # somebody may write credentials into it
        description="Where finished pictures are kept: s3://BUCKET or s3://BUCKET/PREFIX; endpoint, region and "
        "credentials are in the usual `AWS_…` variables (docs/storage.md). Without it, in the store.",
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
        if url.startswith(SENTINEL_SCHEMES):
            SentinelAddress.parse(url)
            return url
        try:
            parts = urlsplit(url)
            is_valid = parts.path.startswith("/") if parts.scheme == "unix" else parts.scheme in ("redis", "rediss")
            is_valid = is_valid and "://" in url and parts.port != 0
        except ValueError:  # a port that is no number, or a bracket that is not closed
            is_valid = False
        if not is_valid:
            raise ValueError("this is not the address of a store")
        return url

    @field_validator("redis_password_file", "redis_sentinel_password_file", "redis_ca_file")
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
        names = ("REDIS_SENTINEL_PASSWORD", "REDIS_SENTINEL_PASSWORD_FILE")
        of_sentinels = [self.redis_sentinel_password, self.redis_sentinel_password_file]
        if all(of_sentinels):
            raise ValueError(f"give the Sentinels' password in only one of {' and '.join(names)}")
        if any(of_sentinels) and self.sentinels is None:
            raise ValueError(f"{names[bool(of_sentinels[1])]} is set, but REDIS_URL is no redis+sentinel://")
        return self

    @property
    def password(self) -> str | None:
        """The password from `REDIS_PASSWORD` or the file; `None` if only the address may have one."""
        return _secret(self.redis_password, self.redis_password_file)

    @property
    def sentinel_password(self) -> str | None:
        """The password of the Sentinels themselves."""
        return _secret(self.redis_sentinel_password, self.redis_sentinel_password_file)

    @property
    def sentinels(self) -> SentinelAddress | None:
        """The Sentinels that name the store's master, if there are any."""
        return SentinelAddress.parse(self.redis_url) if self.redis_url.startswith(SENTINEL_SCHEMES) else None

    @property
    def uses_tls(self) -> bool:
        return self.redis_url.startswith("rediss")

    @property
    def broker_url(self) -> str:
        """The address of the same server in kombu's form. It contains the password: never show it."""
        if self.redis_url.startswith("unix://"):
            return "redis+socket://" + self.redis_url[len("unix://") :]
        if (sentinels := self.sentinels) is not None:
            login = _login(sentinels.user, self.password or sentinels.password)
            return ";".join(
                f"sentinel://{login}{host_and_port(host, port)}/{sentinels.database}" for host, port in sentinels.hosts
            )
        if self.password is None:
            return self.redis_url
        parts = urlsplit(self.redis_url)
        return parts._replace(netloc=_login(parts.username, self.password) + parts.netloc.rpartition("@")[2]).geturl()


def _secret(value: SecretStr | None, file: Path | None) -> str | None:
    if file is not None:
        return file.read_text().strip()
    return value.get_secret_value() if value is not None else None


def _login(user: str | None, password: str | None) -> str:
    return f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@" if user or password else ""
