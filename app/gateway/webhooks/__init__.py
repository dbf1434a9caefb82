"""Telling an address that a job has ended."""
