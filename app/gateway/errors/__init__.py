"""How refusals are told."""
