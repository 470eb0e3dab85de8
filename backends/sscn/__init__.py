"""The engine of this project for submanifold sparse convolutions; see docs/engine.md."""
