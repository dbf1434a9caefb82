"""A picture being drawn: its course, its state, and the handle that its submitter holds."""

from models.engine.sample.course import ConditionedRow, Course, Inputs
from models.engine.sample.handle import Handle, Image, Promise
from models.engine.sample.sample import Sample, share_prefixes

__all__ = ["ConditionedRow", "Course", "Handle", "Image", "Inputs", "Promise", "Sample", "share_prefixes"]
