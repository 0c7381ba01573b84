"""What a stage works with: the deployed DNN, clean images, batches, and images that a caller hands over."""
