"""Breaking a real Cynosure on purpose, and counting what was accepted against what came out."""
