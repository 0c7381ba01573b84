"""SENSEI: training on the variants that a genetic search finds hardest (Gao et al. 2020)."""
