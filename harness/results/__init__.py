"""Records: their storage, their summary per cell, and verdicts."""
