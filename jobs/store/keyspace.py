"""Names of the keys, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from cynosure.contract import Priority

PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
"""In the order in which they are served."""


@dataclass(frozen=True)
class Keys:
    """Every key of one deployment.

    | key | type | what |
    |---|---|---|
    | `{p}:job:ID` | hash | the record |
    | `{p}:job:ID:images` | hash | picture bytes by index |
    | `{p}:job:ID:inputs` | hash | the pictures that its request held, base64 by field; the record has their digests |
    | `{p}:job:ID:events` | stream | what happened to it: status, progress, previews; the last ones |
    | `{p}:owner:OWNER:jobs` | sorted set | the owner's jobs by time of acceptance |
    | `{p}:batch:ID` | hash | a batch: owner, status, counts |
    | `{p}:batch:ID:lines` | list | its requests, decided, in order |
    | `{p}:batch:ID:jobs` | list | their jobs, as far as they have become any |
    | `{p}:batch:ID:open` | set | those of the jobs that have not ended |
    | `{p}:batch:ID:feeder` | string | lock |
    | `{p}:batch-key:OWNER:KEY` | string | id of the batch that an idempotency key made |
    | `{p}:batches` | sorted set | ids of batches that want feeding by time of acceptance |
    | `{p}:job:ID:webhook` | hash | what is told to the job's webhook, and what came of it |
    | `{p}:webhooks:due` | sorted set | jobs whose webhook is to be told by the time of the next attempt |
    | `{p}:webhooks:watched` | sorted set | jobs whose end is to be told to a webhook |
    | `{p}:job:ID:known` | string | its owner; outlives the record, so that an expired job is told from an unknown one |
    | `{p}:queue:MODEL:PRIORITY` | sorted set | queued ids by time of acceptance |
    | `{p}:turns:MODEL:PRIORITY` | sorted set | the same ids by their turn |
    | `{p}:owners:MODEL:PRIORITY` | sorted set | owners by where the turn of their next job is |
    | `{p}:owners:MODEL:PRIORITY:taken` | sorted set | owners by where the last of their jobs ends that was taken |
    | `{p}:owners:MODEL:PRIORITY:waiting:OWNER` | sorted set | the owner's queued ids there |
    | `{p}:delayed:MODEL` | sorted set | queued ids that were put off, by the time they are due |
    | `{p}:suspects:MODEL` | sorted set | queued ids whose workers were lost twice: they run apart |
    | `{p}:quarantine:MODEL` | string | the worker that empties itself for a suspect |
    | `{p}:pace:MODEL` | hash | how fast jobs are done, and the clock of each priority's turns |
    | `{p}:waiting:OWNER` | sorted set | the owner's queued ids |
    | `{p}:claim:TOKEN` | string | id that a call has claimed, for a lease: its repetition gets the same one |
    | `{p}:leases` | sorted set | running ids by the end of their lease |
    | `{p}:idempotency:OWNER:KEY` | string | id and fingerprint |
    | `{p}:result:OWNER:HASH` | string | id of a finished job that answers every request of that owner and hash |
    | `{p}:api-key:ID` | hash | an API key: digest of its secret, scopes, expiry |
    | `{p}:bucket:OWNER` | hash | tokens of its rate limit |
    | `{p}:used:OWNER:DAY:WHAT` | string | pictures or evaluations accepted in that day |
    | `{p}:charge:TOKEN` | string | that a call has charged a day: its repetition does not |
    | `{p}:api-keys` | sorted set | ids of API keys by the time they are forgotten |
    | `{p}:calibration:HASH` | string | how a pack runs on a kind of device, as the first worker there measured it |
    | `{p}:inquiries:MODEL` | list | questions that any worker of the model may answer |
    | `{p}:inquiry:ID` | list | the answer to one |
    | `{p}:finished` | channel | ids as they finish |
    | `{p}:moved` | channel | ids as events are added |
    | `{p}:reaper` | string | lock |
    | `{p}:workers` | sorted set | worker names by the end of their registration |
    | `{p}:worker:NAME` | string | the worker's model cards |
    """

    prefix: str

    def job(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}"

    def images(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}:images"

    def inputs(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}:inputs"

    def events(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}:events"

    def known(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}:known"

    def owned(self, owner: str) -> str:
        return f"{self.prefix}:owner:{owner}:jobs"

    def batch(self, batch_id: str) -> str:
        return f"{self.prefix}:batch:{batch_id}"

    def batch_lines(self, batch_id: str) -> str:
        return f"{self.prefix}:batch:{batch_id}:lines"

    def batch_jobs(self, batch_id: str) -> str:
        return f"{self.prefix}:batch:{batch_id}:jobs"

    def batch_open(self, batch_id: str) -> str:
        return f"{self.prefix}:batch:{batch_id}:open"

    def batch_lock(self, batch_id: str) -> str:
        return f"{self.prefix}:batch:{batch_id}:feeder"

    def batch_key(self, owner: str, key: str) -> str:
        return f"{self.prefix}:batch-key:{owner}:{key}"

    @property
    def batches(self) -> str:
        return f"{self.prefix}:batches"

    def webhook(self, job_id: str) -> str:
        return f"{self.prefix}:job:{job_id}:webhook"

    @property
    def webhooks_due(self) -> str:
        return f"{self.prefix}:webhooks:due"

    @property
    def watched(self) -> str:
        return f"{self.prefix}:webhooks:watched"

    def queue(self, model: str, priority: Priority) -> str:
        return f"{self.prefix}:queue:{model}:{priority}"

    def queues(self, model: str) -> list[str]:
        """All of a model's, highest priority first."""
        return [self.queue(model, priority) for priority in PRIORITIES]

    def turns(self, model: str, priority: Priority) -> str:
        return f"{self.prefix}:turns:{model}:{priority}"

    def owners(self, model: str, priority: Priority) -> str:
        return f"{self.prefix}:owners:{model}:{priority}"

    def delayed(self, model: str) -> str:
        return f"{self.prefix}:delayed:{model}"

    def suspects(self, model: str) -> str:
        return f"{self.prefix}:suspects:{model}"

    def quarantine(self, model: str) -> str:
        return f"{self.prefix}:quarantine:{model}"

    def pace(self, model: str) -> str:
        return f"{self.prefix}:pace:{model}"

    def waiting(self, owner: str) -> str:
        return f"{self.prefix}:waiting:{owner}"

    def claim(self, token: str) -> str:
        return f"{self.prefix}:claim:{token}"

    def places(self, model: str) -> list[str]:
        """Wherever a waiting job of the model may be, and its pace: the first keys of every script of the queue."""
        return [
            *self.queues(model),
            *(self.turns(model, priority) for priority in PRIORITIES),
            *(self.owners(model, priority) for priority in PRIORITIES),
            self.delayed(model),
            self.suspects(model),
            self.pace(model),
        ]

    def result(self, owner: str, key: str) -> str:
        return f"{self.prefix}:result:{owner}:{key}"

    def calibration(self, key: str) -> str:
        return f"{self.prefix}:calibration:{key}"

    def idempotency(self, owner: str, key: str) -> str:
        return f"{self.prefix}:idempotency:{owner}:{key}"

    def api_key(self, key_id: str) -> str:
        return f"{self.prefix}:api-key:{key_id}"

    def inquiries(self, model: str) -> str:
        return f"{self.prefix}:inquiries:{model}"

    def inquiry(self, inquiry_id: str) -> str:
        return f"{self.prefix}:inquiry:{inquiry_id}"

    def worker(self, name: str) -> str:
        return f"{self.prefix}:worker:{name}"

    def bucket(self, owner: str) -> str:
        return f"{self.prefix}:bucket:{owner}"

    def used(self, owner: str, day: str, what: str) -> str:
        return f"{self.prefix}:used:{owner}:{day}:{what}"

    def charge(self, token: str) -> str:
        return f"{self.prefix}:charge:{token}"

    @property
    def api_keys(self) -> str:
        return f"{self.prefix}:api-keys"

    @property
    def leases(self) -> str:
        return f"{self.prefix}:leases"

    @property
    def finished(self) -> str:
        return f"{self.prefix}:finished"

    @property
    def moved(self) -> str:
        return f"{self.prefix}:moved"

    @property
    def reaper(self) -> str:
        return f"{self.prefix}:reaper"

    @property
    def workers(self) -> str:
        return f"{self.prefix}:workers"
