"""Runs: plans, workers, sampling and everything between a suite and its records."""
