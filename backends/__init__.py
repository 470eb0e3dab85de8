"""Sparse-convolution engines behind one contract; nothing here imports the harness."""

__version__ = "0.1.0"
