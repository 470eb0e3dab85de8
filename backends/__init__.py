"""Sparse-convolution engines behind one contract; nothing here knows the harness."""

__version__ = "0.1.0"
