"""The trainer against a plain loop."""
