"""Execution: Celery says which model has work, the engine draws, the record is written."""
