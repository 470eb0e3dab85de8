"""Which engines can run on this machine."""
