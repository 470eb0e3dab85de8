"""Where a cell's time and memory go, layer by layer."""
