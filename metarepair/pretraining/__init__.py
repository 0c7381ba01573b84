"""Train a DNN to deploy on clean images."""
