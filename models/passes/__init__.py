"""Passes through a network: what a thread's pass does about deep blocks, and passes recorded as graphs."""
