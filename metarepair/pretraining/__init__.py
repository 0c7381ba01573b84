"""Training of a DNN to deploy, from clean images."""
