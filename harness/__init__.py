"""Measure sparse-convolution engines; knows backends, never a single engine by name."""
