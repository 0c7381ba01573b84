"""Identify images by a digest of their pixels."""

# B images, H W C pixels

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tasks.records import Pixels

Digests = NDArray[np.uint64]


def pixel_digests(images_BHWC_u8: Pixels) -> Digests:
    """The 64-bit BLAKE2b digest of each image's bytes, [B]."""
    images = np.ascontiguousarray(images_BHWC_u8)
    digests = [hashlib.blake2b(image.data, digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
