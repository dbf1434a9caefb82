"""Training bundled packs from their data."""
