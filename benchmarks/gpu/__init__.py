"""What a GPU draws and how fast, in one run of at most ten minutes."""
