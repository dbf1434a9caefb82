"""Batches of requests: receiving them, feeding them to the queue, and serving their results."""
