"""Measurement of sparse-convolution engines through the contract of ``backends``."""
