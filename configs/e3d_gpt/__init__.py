"""E3D-GPT (arXiv 2410.14200)."""
