"""Apricot: weight adaptation with reduced models (Zhang and Chan 2019)."""
