"""OpenAI's image API, on top of Cynosure's own."""
