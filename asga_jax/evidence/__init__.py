"""Grids of experiments: which policies carry over, and what they gain."""
