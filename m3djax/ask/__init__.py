"""Questions about scans, and `run.py ask`."""
