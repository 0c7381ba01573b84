"""The data that repair learns from: images -> corruptions -> failures -> experiences -> FID, confidence -> tasks.

Imports neither `metarepair` nor `distributed`, and never Ray.
"""
