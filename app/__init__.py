"""The gateway: HTTP, the job record, the queue."""
