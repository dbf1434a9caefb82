"""The queue: the job record, its transitions for gateways and workers, and its events."""
