"""Sampling of tasks: the confidence in each experience, and semantic-cover tasks."""
