"""Shipped configs. `get_config()` of each file returns an `Experiment`, or a `Target` to plan."""
