"""Prompts and latents in batches."""
