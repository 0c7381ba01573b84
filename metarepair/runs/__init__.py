"""A run on storage: its layout, checkpoints, metrics, and what a training loop needs of its process."""
