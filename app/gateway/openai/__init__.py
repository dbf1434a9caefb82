"""OpenAI's image API on top of ours."""
