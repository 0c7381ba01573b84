"""What is learned from: images -> corruptions -> failures -> experiences -> FID, confidence -> tasks.

Imports neither `metarepair` nor `distributed`, and never Ray.
"""
