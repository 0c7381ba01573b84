"""Checks, before hours of work, that the engine's gradients of a DNN are right."""
