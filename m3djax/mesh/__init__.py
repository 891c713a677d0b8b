"""Devices and processes: where arrays live, and how processes agree."""
