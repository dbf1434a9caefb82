"""The race: the mixed stream through every contender, in turns within one run."""
