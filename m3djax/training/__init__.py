"""Training: the loop, its stop signals, its throughput and its FLOP counts."""
