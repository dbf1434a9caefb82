"""What orders of ticks do to answers, by simulation: the mixed stream, measured costs of batches, no network."""
