"""Where the record lives and how long it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """Settings of the job store, from the environment (`REDIS_URL`, `CYNOSURE_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_", frozen=True, populate_by_name=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="redis://, rediss:// or unix:///path",
    )
    key_prefix: str = Field("cynosure", description="First part of every key.")
    result_ttl_s: int = Field(86_400, ge=1, description="Seconds a finished job and its pictures are kept.")
    unfinished_ttl_s: int = Field(7 * 86_400, ge=1, description="Seconds an unfinished job is kept.")
    tombstone_ttl_s: int = Field(7 * 86_400, ge=1, description="Seconds after which an expired id is forgotten.")
    lease_s: float = Field(15.0, gt=0, description="A worker that is silent for so long has lost its jobs.")
    max_attempts: int = Field(
        5, ge=1, description="Attempts that may be lost to a fault before a job fails as attempts_exhausted."
    )
    max_queued: int = Field(10_000, ge=1, description="Jobs that may wait per model.")
    max_queued_per_key: int = Field(2_000, ge=1, description="Jobs that may wait per API key, over all models.")
    priority_ageing_s: float = Field(
        60.0, ge=0, description="Seconds of waiting that count as much as the next higher priority."
    )
    durability: Literal["relaxed", "fsync"] = Field("relaxed", description="fsync: 202 waits for the disk.")

    @property
    def broker_url(self) -> str:
        """The same server as kombu spells it."""
        return (
            "redis+socket://" + self.redis_url[len("unix://") :]
            if self.redis_url.startswith("unix://")
            else self.redis_url
        )
