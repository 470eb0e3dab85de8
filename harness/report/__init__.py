"""Shared parts of all pages: style, templates, rows and provenance."""
