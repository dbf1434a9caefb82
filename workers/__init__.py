"""Workers: claim jobs when Celery says that a model has work, draw them on the engine and write the record."""
