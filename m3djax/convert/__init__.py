"""Conversion between published checkpoints and the parameters of m3djax, in both directions."""
