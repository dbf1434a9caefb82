"""How many cores a thread computes with."""

import torch


def compute_with(threads: int) -> None:
    """Have the calling thread's operators use so many threads from now on.

    torch settles a thread's count at its first operator that could be divided, from what any thread asked for last; so
    it is settled here first, and asked for only where it differs.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
