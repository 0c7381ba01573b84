"""Algorithm 1, lines 1-12: how θ_meta is trained on experiences."""
