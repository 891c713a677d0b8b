"""Which organ does a patch show? Asked of frozen features by a linear classifier."""
