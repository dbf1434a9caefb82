"""`cynosure jobs` and `cynosure cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from cynosure.cli.shared import ApiKey, AsJson, Url, refusing, show_json, show_table
from cynosure.client import DEFAULT_URL, Client
from cynosure.contract import JobStatus


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="only jobs in this state")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="maximum number of jobs to list")] = 20,
    cursor: Annotated[str | None, typer.Option(help="continue after a page: its next_cursor")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        page = client.jobs(status=status, cursor=cursor, limit=limit)
    if as_json:
        show_json(page)
        return
    show_table(
        ("job", "status", "done", "pictures", "model", "sampler", "accepted"),
        (
            (
                job.id,
                job.status,
                f"{job.progress:.0%}",
                str(job.request.num_images),
                job.request.model,
                f"{job.request.sampler}, {job.request.steps}",
                f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
            )
            for job in page.jobs
        ),
    )
    if page.next_cursor:
        typer.echo(f"next page: cynosure jobs --cursor {page.next_cursor}", err=True)


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="JOB", help="jobs to cancel")],
    erase: Annotated[bool, typer.Option("--erase", help="also delete the jobs, with their pictures")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs. Jobs that have ended stay as they are, unless they are erased."""
    with refusing(as_json), Client(url, api_key=api_key) as client:
        ended = [client.erase(job_id) if erase else client.cancel(job_id) for job_id in ids]
    if as_json:
        show_json(ended)
        return
    for job in ended:
        typer.echo(f"{job.id} {job.status}")
