"""Training: the step, the loop, the optimizer and what is measured on the way."""
