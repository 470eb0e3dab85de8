"""Labels of a user's own events, by a trained network on one engine."""
