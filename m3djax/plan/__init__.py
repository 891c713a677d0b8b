"""Plans: what a config needs and what bounds its speed, on devices that are not there."""
