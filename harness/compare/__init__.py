"""Comparisons: engines side by side, or two runs, as tables and as a page."""
