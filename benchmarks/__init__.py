"""Benchmarks: what Cynosure does against what a user would write instead, side by side in one run."""
