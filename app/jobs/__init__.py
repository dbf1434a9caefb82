"""The job record: states, store, events, queue."""
