"""Parity: what the reference systems compute, stored, and how far from it this machine is.

`golden/` holds tensors that the published ADM, GLIDE and DPM-Solver code computed with random weights at small sizes
(`reference.py` made them); `cases.py` computes the same here.
"""
