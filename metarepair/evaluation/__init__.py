"""How repaired DNNs do on held-out failures, corrupted and clean images."""
