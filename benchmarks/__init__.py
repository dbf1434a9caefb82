"""Benchmarks: what Cynosure does against what a user would write instead, side by side in one run."""

import models  # noqa: F401  # before torch and diffusers, whose environment and warnings it sets
