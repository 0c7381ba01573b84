"""The search of settings on Ray Tune."""
