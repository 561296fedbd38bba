"""The torch.fx front end: capture, channel analysis and slimming of ATen graphs."""
