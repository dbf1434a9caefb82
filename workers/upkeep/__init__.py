"""Threads that run alongside drawing: watchdog, registration, cancellations, reaper and drain."""
