"""Trains packs, and classifiers for packs, from a user's own pictures."""
