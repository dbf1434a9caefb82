"""Runs whole processes under test: ports, environments and readiness."""
