"""What importers raise."""


class Unfit(ValueError):
    """A checkpoint that can't be read or converted; the message says why and what to do."""
