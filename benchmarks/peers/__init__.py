"""The alternatives a user would write: the same weights behind a lock, behind LitServe, and behind plain Celery."""
