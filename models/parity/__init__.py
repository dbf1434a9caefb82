"""Parity: compares this machine's results with stored results of the reference systems.

`golden/` holds tensors that `reference.py` computed with the published ADM, GLIDE and DPM-Solver code, with random
weights at small sizes; `cases.py` computes the same with our code.
"""
