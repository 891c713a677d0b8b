"""Devices and processes: the sharding of arrays, and the agreement of processes."""
