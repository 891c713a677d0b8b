"""Losses that several tasks share."""
