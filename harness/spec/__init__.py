"""Definitions of measurements: cells, suites and metrics."""
