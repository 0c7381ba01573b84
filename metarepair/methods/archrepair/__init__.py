"""ArchRepair: block-level architecture and weight repair (Qi et al. 2022)."""
