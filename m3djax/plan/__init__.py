"""Plans: memory needs and speed bounds of a config, computed without the devices."""
