"""Reading, preprocessing and serving of 3D medical images: numpy only, JAX is never imported."""
