"""Our own engine: submanifold sparse convolutions for detector events."""
