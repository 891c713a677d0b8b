"""The evaluator of answers to questions about volumes, and its metrics."""
