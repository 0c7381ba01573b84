"""The data of a stage: the deployed DNN, clean images, batches, and images that a caller passes in."""
