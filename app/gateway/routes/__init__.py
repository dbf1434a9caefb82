"""The routes: parse, call, shape."""
