"""Published PyTorch layouts to ours and back."""
