"""What a waiting job is told, against what came: a real queue under steady load."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime

from cynosure import Client, JobStatus
from harness.processes import wait_until

COUNT, SETTLED = 200, 30


def test_a_waiting_jobs_place_and_time_left_come_true(server_url: str) -> None:
    """The median over a whole queue, so that a moment in which the machine does something else decides nothing."""
    told: list[tuple[str, datetime, float]] = []
    places: dict[str, list[int]] = {}
    with Client(server_url) as client:
        wait_until(lambda: all(card.measured for card in client.models()), what="the worker's pace is steady")
        batch = client.submit_batch(
            [{"class_label": n % 10, "steps": 30, "seed": n, "use_cache": False} for n in range(COUNT)]
        )

        def is_done() -> bool:
            counts = client.batch_status(batch.id).counts
            asked_at = datetime.now(UTC)
            for job in client.jobs(status=JobStatus.QUEUED, limit=100).jobs:
                places.setdefault(job.id, []).append(job.queue_position or 0)
                if counts.succeeded >= SETTLED and job.eta_seconds is not None:
                    told.append((job.id, asked_at, job.eta_seconds))
            return counts.succeeded == COUNT

        wait_until(is_done, what="the queue is drawn")
        ended = {
            result.job_id: client.job(result.job_id or "").finished_at for result in client.batch_results(batch.id)
        }
    assert all(seen == sorted(seen, reverse=True) for seen in places.values()), "a place only ever gets better"
    ratios = []
    for job_id, asked_at, eta_s in told:
        finished_at = ended.get(job_id)
        if finished_at is not None:
            ratios.append(eta_s / max(0.01, (finished_at - asked_at).total_seconds()))
    assert len(ratios) > 50
    assert 0.5 < statistics.median(ratios) < 2, sorted(ratios)
