"""Structure-aware mutations of every format that is read: ``python -m tests.fuzz --seconds N``."""
