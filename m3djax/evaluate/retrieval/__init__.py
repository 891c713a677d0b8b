"""The evaluator of retrieval between volumes and texts."""
