"""M3D: contrastive pretraining (M3D-CLIP) and the answering model on top of it (M3D-LaMed)."""
