"""Trains the bundled packs."""
