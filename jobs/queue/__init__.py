"""The queue: the job record, its transitions on either side, and what is told of them."""
