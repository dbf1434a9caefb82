"""What a request passes before a route sees it: keys, limits, known parameters."""
