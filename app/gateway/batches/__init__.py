"""Many requests at once: how they come in, are fed to the queue, and come out."""
