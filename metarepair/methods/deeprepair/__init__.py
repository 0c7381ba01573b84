"""DeepRepair: AugMix with the style of collected failures as a further operation (Yu et al. 2021)."""
