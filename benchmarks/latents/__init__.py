"""Benchmarks with a small Stable Diffusion: prompts and latents in batches, and mixed sizes."""
