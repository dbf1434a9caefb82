"""Measures picture quality with a judge that is independent of guidance."""
