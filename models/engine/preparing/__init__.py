"""Everything that samples need before their first evaluation."""

from models.engine.preparing.preparation import Preparation, row_cost
from models.engine.preparing.thread import Asked, PreparingThread

__all__ = ["Asked", "Preparation", "PreparingThread", "row_cost"]
