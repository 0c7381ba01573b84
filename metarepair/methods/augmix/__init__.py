"""AugMix: consistency training on mixtures of augmented images (Hendrycks et al. 2020)."""
