"""Command line: ``python -m harness …``."""
