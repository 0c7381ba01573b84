"""A run on storage: its layout, stages, checkpoints and log lines, and the context of a training loop."""
