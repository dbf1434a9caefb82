"""Replicate's predictions, so that its clients can be pointed here."""
