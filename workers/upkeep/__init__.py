"""Threads that run beside drawing: they watch, register, cancel, reclaim and drain."""
