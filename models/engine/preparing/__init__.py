"""Everything that samples need before their first evaluation."""

from models.engine.preparing.preparation import Preparation, added_cost, row_cost
from models.engine.preparing.thread import Asked, PreparingThread

__all__ = ["Asked", "Preparation", "PreparingThread", "added_cost", "row_cost"]
