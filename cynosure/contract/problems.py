"""Error answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """An error answer (RFC 9457)."""

    type: str = Field(description="URI reference of the kind of problem.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable machine-readable name.")
    field: str | None = Field(None, description="The request field at fault.")
    errors: list[dict[str, Any]] | None = Field(None, description="All faults, if there are several.")
    line: int | None = Field(None, description="The line of a batch at fault, counted from 1.")
    request_id: str | None = Field(None, description="The request's id, which the server's log has, too.")
    job_code: str | None = Field(
        None, description="The job's own error code, if the client waited for a job that failed."
    )
