"""The evaluator of masked autoencoders, and its baselines."""
