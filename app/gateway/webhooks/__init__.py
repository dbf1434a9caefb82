"""Webhooks: a signed POST when a job ends."""
