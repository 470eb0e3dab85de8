"""History: every stored run as series over commits, and the change points found."""
