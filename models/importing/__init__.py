"""Converts other systems' checkpoints to packs."""
