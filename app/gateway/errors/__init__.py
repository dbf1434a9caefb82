"""Error answers."""
