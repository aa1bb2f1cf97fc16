"""Reads a stranger's network: kinds of layers, and how they are called."""
