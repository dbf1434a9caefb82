"""The studio: a page on the public API."""
