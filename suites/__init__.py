"""Suites: one question per module, and the grid of cells that answers it."""
