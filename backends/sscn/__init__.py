"""This project's own engine for submanifold sparse convolutions; see docs/engine.md."""
