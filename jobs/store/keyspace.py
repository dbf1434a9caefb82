"""The names of all Redis keys."""

from __future__ import annotations

from dataclasses import dataclass

from cynosure.contract import Priority

PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
"""Highest first."""


@dataclass(frozen=True)
class Keys:
    """The keys of one deployment.

    | key | type | what |
    |---|---|---|
    | `{p}:job:ID` | hash | the record |
    | `{p}:job:ID:images` | hash | picture bytes by index, or `s3 ` and the object that has them |
    | `{p}:job:ID:inputs` | hash | the pictures of its request, base64 by field; the record has their digests |
    | `{p}:job:ID:events` | stream | its latest events: status, progress, previews |
    | `{p}:owner:OWNER:jobs` | sorted set | the owner's jobs by time of acceptance |
    | `{p}:owner:OWNER:batches` | sorted set | the owner's started batches by time of acceptance |
    | `{p}:owner:OWNER:model` | string | the model that the owner chose for requests that name none |
    | `{p}:owner:OWNER:calls` | sorted set | ids that its calls without a job's name wait for, by time |
    | `{p}:batch:ID` | hash | a batch: owner, status, counts |
    | `{p}:batch:ID:lines` | list | its requests in order, with everything decided |
    | `{p}:batch:ID:jobs` | list | ids of the jobs made from its lines so far, in order |
    | `{p}:batch:ID:open` | set | ids of its jobs that have not ended |
    | `{p}:batch:ID:feeder` | string | lock |
    | `{p}:batch-key:OWNER:KEY` | string | id of the batch that an idempotency key made |
    | `{p}:batches` | sorted set | ids of running batches by time of acceptance |
    | `{p}:job:ID:webhook` | hash | delivery to the job's webhook: what is sent, and the outcome |
    | `{p}:webhooks:due` | sorted set | ids of jobs with a pending delivery, by the time of its next attempt |
    | `{p}:webhooks:watched` | sorted set | ids of jobs whose end will call a webhook |
    | `{p}:job:ID:known` | string | its owner; outlives the record, to tell an expired job from an unknown one |
    | `{p}:queue:MODEL:PRIORITY` | sorted set | queued ids by time of acceptance |
    | `{p}:turns:MODEL:PRIORITY` | sorted set | the same ids by their turn (start tag) |
    | `{p}:owners:MODEL:PRIORITY` | sorted set | owners by the earliest turn of their next job |
    | `{p}:owners:MODEL:PRIORITY:taken` | sorted set | owners by the virtual finish time of their last started job |
    | `{p}:owners:MODEL:PRIORITY:waiting:OWNER` | sorted set | the owner's queued ids of this model and priority |
    | `{p}:delayed:MODEL` | sorted set | queued ids in back-off, by the time they are due |
    | `{p}:suspects:MODEL` | sorted set | queued ids that have lost two workers: they run apart from others |
    | `{p}:quarantine:MODEL` | string | name of the worker that empties itself for a suspect |
    | `{p}:pace:MODEL` | hash | throughput, and the virtual clock of each priority |
    | `{p}:recent:MODEL` | list | its last jobs that succeeded: when, waiting and running times in ms, pictures |
    | `{p}:waits:OWNER` | set | keys of the sets `…:waiting:OWNER` that hold the owner's queued ids |
    | `{p}:claim:TOKEN` | string | id that a call has claimed, kept for one lease: a repeated call gets the same job |
    | `{p}:leases` | sorted set | running ids by the expiry of their lease |
    | `{p}:idempotency:OWNER:KEY` | string | id and fingerprint of the job that the key made |
    | `{p}:result:OWNER:HASH` | string | id of the finished job that answers requests of that owner and hash |
    | `{p}:api-key:ID` | hash | an API key: digest of its secret, scopes, expiry |
    | `{p}:link-secret` | string | signs links to pictures |
    | `{p}:bucket:OWNER` | hash | tokens of its rate limit |
    | `{p}:used:OWNER:DAY:WHAT` | string | pictures or evaluations accepted on that day |
    | `{p}:charge:TOKEN` | string | marks that a call has charged a quota: a repeated call does not |
    | `{p}:api-keys` | sorted set | ids of API keys by the time at which they are deleted |
    | `{p}:calibration:HASH` | string | calibration of a pack on a kind of device, measured by the first worker there |
    | `{p}:inquiries:MODEL` | list | questions that any worker of the model may take |
    | `{p}:inquiry:ID` | list | the answer to that question |
    | `{p}:finished` | channel | ids as they finish |
    | `{p}:moved` | channel | ids as events are added |
    | `{p}:reaper` | string | lock |
    | `{p}:workers` | sorted set | worker names by the expiry of their registration |
    | `{p}:worker:NAME` | string | the worker's model cards |
    | `{p}:workers:seen` | sorted set | names of all workers, also of those that drain, by the expiry of what they say |
    | `{p}:worker:NAME:status` | string | what the worker says of itself every second |
    | `{p}:worker:NAME:drain` | string | the worker is to drain |
    | `{p}:worker:NAME:models` | string | how far the worker is with each model |
    | `{p}:models` | hash | models that all workers are to hold besides their own, by name |
    | `{p}:models:known` | hash | by name, the latest card of each model that a worker has held, and its place there |
    | `{p}:models:leaving` | hash | what becomes of the jobs of models that leave or have left: these take no new ones |
    | `{p}:models:loading:ID` | string | number of workers that have begun to load it, and not ended |
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

    def owned_batches(self, owner: str) -> str:
        return f"{self.prefix}:owner:{owner}:batches"

    def chosen_model(self, owner: str) -> str:
        return f"{self.prefix}:owner:{owner}:model"

    def calls(self, owner: str) -> str:
        return f"{self.prefix}:owner:{owner}:calls"

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
        """All queues of a model, highest priority first."""
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

    def recent(self, model: str) -> str:
        return f"{self.prefix}:recent:{model}"

    def waits(self, owner: str) -> str:
        return f"{self.prefix}:waits:{owner}"

    def claim(self, token: str) -> str:
        return f"{self.prefix}:claim:{token}"

    def places(self, model: str) -> list[str]:
        """Every place where a waiting job of the model may be, and its pace: the first keys of every queue script."""
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

    def worker_models(self, name: str) -> str:
        return f"{self.worker(name)}:models"

    def worker_status(self, name: str) -> str:
        return f"{self.worker(name)}:status"

    def worker_drain(self, name: str) -> str:
        return f"{self.worker(name)}:drain"

    def model_loading(self, wish: str) -> str:
        return f"{self.prefix}:models:loading:{wish}"

    def bucket(self, owner: str) -> str:
        return f"{self.prefix}:bucket:{owner}"

    def used(self, owner: str, day: str, what: str) -> str:
        return f"{self.prefix}:used:{owner}:{day}:{what}"

    def charge(self, token: str) -> str:
        return f"{self.prefix}:charge:{token}"

    @property
    def models(self) -> str:
        return f"{self.prefix}:models"

    @property
    def models_known(self) -> str:
        return f"{self.prefix}:models:known"

    @property
    def models_leaving(self) -> str:
        return f"{self.prefix}:models:leaving"

    @property
    def api_keys(self) -> str:
        return f"{self.prefix}:api-keys"

    @property
    def link_secret(self) -> str:
        return f"{self.prefix}:link-secret"

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

    @property
    def workers_seen(self) -> str:
        return f"{self.prefix}:workers:seen"
