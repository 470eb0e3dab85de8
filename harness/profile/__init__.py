"""Profiles of one cell: time and memory per layer."""
