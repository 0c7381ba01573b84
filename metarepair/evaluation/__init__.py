"""Measures repaired DNNs on held-out failures, corrupted images and clean images."""
