"""M3D: contrastive pretraining, and what is built on it."""
