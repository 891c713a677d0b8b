"""Configs; `get_config()` of each file returns one `Experiment`."""
