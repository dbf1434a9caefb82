"""How good the pictures are, by a judge that has nothing to do with guidance."""
