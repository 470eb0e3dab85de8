"""Static pages of submitted results: rankings per machine, machines, engines and submissions."""
