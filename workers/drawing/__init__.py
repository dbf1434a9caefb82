"""What a worker draws: requests as specs, pictures as PNG, and what drawing would take."""
