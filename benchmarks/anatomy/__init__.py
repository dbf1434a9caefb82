"""Where a picture's time goes, in the engine and around it."""
