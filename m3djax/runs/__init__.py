"""Runs: their folders, and the models in them."""
