"""What to measure: one question a module."""
