"""History with airspeed velocity: its environments, its command line and its reading of records."""
