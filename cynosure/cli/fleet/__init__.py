"""Commands for operators: what the workers do."""
