"""The Ray part of each stage: the executor, and training groups."""
