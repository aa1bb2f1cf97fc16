"""Trained float weights: files, names, layouts."""
