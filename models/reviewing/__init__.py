"""Reviewing finished pictures with an image classifier of transformers."""
