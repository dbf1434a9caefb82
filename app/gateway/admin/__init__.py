"""What operators do while the service runs."""
