"""Step caching: a network's deep blocks run at some evaluations, and at those between what they found is reused.

What they find changes slowly from one evaluation to the next (DeepCache, Ma et al. 2024; Δ-DiT, Chen et al. 2024).
"""

from models.caching.deep import make_reusable
from models.passes.state import Kept, keeping, reusing

__all__ = ["Kept", "keeping", "make_reusable", "reusing"]
