"""Group images that show nearly the same, so that one of them cannot judge what was learned from another.

Each image gets a perceptual hash of 64 bits: the signs of its lowest frequencies. Two images are near-duplicates if
their hashes differ in at most NEAR bits; that holds after compression, resizing or a slight change of brightness.
Source: the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
"""

# N images, B of a batch, H W C pixels

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks.records import Ints, Pixels
from tasks.splits.parts import in_order

SIDE, KEPT = 32, 8  # pixels of the grey image that is transformed, frequencies kept of each direction
NEAR = 3  # bits
BANDS = NEAR + 1  # of 16 bits: hashes that differ in at most NEAR bits agree in one of them
_BATCH = 1024  # images that are transformed at a time
_BLOCK = 256  # hashes of a band that are compared with each other at a time

Hashes = NDArray[np.uint64]


def perceptual_hashes(images_NHWC: Pixels) -> Hashes:
    """Compute the perceptual hash of each image.

    Args:
        images_NHWC: uint8 [N, H, W, 3], RGB.

    Returns:
        uint64 [N].
    """
    parts = [_hashes(images_NHWC[start : start + _BATCH]) for start in range(0, len(images_NHWC), _BATCH)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _hashes(images_BHWC: Pixels) -> Hashes:
    grey_BHW = np.empty((len(images_BHWC), SIDE, SIDE), np.float32)
    for image_HWC, grey_HW in zip(images_BHWC, grey_BHW, strict=True):
        grey = cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2GRAY)
        grey_HW[:] = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low_BK = dctn(grey_BHW, axes=(1, 2), norm="ortho")[:, :KEPT, :KEPT].reshape(len(grey_BHW), -1)
    # The first value is the mean brightness, which says nothing about what the image shows.
    bits_BK = low_BK > np.median(low_BK[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits_BK, axis=1, bitorder="little").view("<u8").astype(np.uint64)[:, 0]


def group_images(hashes_N: Hashes, given_N: Ints | None = None) -> Ints:
    """Number the groups of images that belong together: near-duplicates, and those that share a given group.

    Args:
        hashes_N: uint64 [N], perceptual hashes.
        given_N: int64 [N], numbers of groups that the user gave; `None` if none were given.

    Returns:
        int64 [N], numbers from 0 in the order of first appearance.
    """
    unique, of_N = np.unique(hashes_N, return_inverse=True)
    links = [_near_pairs(unique)]
    nodes, labels_N = len(unique), of_N.astype(np.int64)
    if given_N is not None:  # a node for each given group, linked with the hashes of its images
        _, number_N = np.unique(given_N, return_inverse=True)
        links.append(np.stack([labels_N, nodes + number_N]))
        nodes += int(number_N.max(initial=-1)) + 1
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    return in_order(component[labels_N].astype(np.int64))


def near_duplicates(hashes_N: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Find the images that are in a group with some other images.

    Args:
        hashes_N: uint64 [N], perceptual hashes of the images.
        others: uint64 [M], perceptual hashes of the other images.

    Returns:
        bool [N].
    """
    groups = group_images(np.concatenate([hashes_N, others]))
    return np.isin(groups[: len(hashes_N)], groups[len(hashes_N) :])


def _near_pairs(unique: Hashes) -> Ints:
    """Pairs [2, P] of rows of different hashes that differ in at most NEAR bits."""
    pairs = [np.empty((2, 0), np.int64)]
    for band in range(BANDS):
        key = ((unique >> np.uint64(16 * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(key, kind="stable")
        bounds = np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))
        for start, stop in pairwise(bounds.tolist()):
            members = order[start:stop]
            for first in range(0, len(members) if len(members) > 1 else 0, _BLOCK):
                block = members[first : first + _BLOCK]
                differing = np.bitwise_count(unique[block, None] ^ unique[None, members[first:]])
                i, j = np.nonzero(differing <= NEAR)
                pairs.append(np.stack([block[i], members[first:][j]])[:, i < j])
    return np.concatenate(pairs, axis=1)
