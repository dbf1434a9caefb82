"""Packs from other systems' checkpoints."""
