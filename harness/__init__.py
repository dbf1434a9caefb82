"""Whole processes under test: where they listen, what they see, and when they are ready."""
