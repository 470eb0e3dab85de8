"""What is measured: cells, suites and metrics."""
