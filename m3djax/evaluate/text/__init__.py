"""Metrics of texts: pure functions of strings."""
