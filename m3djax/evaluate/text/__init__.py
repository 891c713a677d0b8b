"""Metrics of texts, as pure functions of strings."""
