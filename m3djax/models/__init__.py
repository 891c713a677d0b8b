"""Pure-functional Linen modules."""
