"""The linear probe: classification of patches by organ, on frozen features."""
