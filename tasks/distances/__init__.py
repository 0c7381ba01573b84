"""Distances between environments: the Fréchet distance, its intervals, and the nuclear norm that it needs."""
