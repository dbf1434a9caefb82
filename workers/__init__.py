"""Execution: Celery hands over job ids, the engine draws, the record is written."""
