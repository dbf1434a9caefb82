"""Trains LoRAs for packs that take prompts."""
