"""What a user would write instead: the same weights behind a lock, behind LitServe, and behind plain Celery."""
