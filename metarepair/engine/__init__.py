"""The inner loop and its exact meta-gradient, for any PyTorch module."""
