"""Choose style images among the failures, and give clean images their style.

Source: Yu et al. 2021 (DeepRepair: Style-Guided Repairing for DNNs in the Real-World Operational Environment): clusters
of failures, and style transfer of clean images. As in their code, the style image of a cluster is drawn at random.
The style transfer here uses statistics of wavelet bands; that of the paper, WCT², is in wct2.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarepair.methods.deeprepair.haar import haar, inverse_haar
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints, PixelRows, Pixels

# N images, P pixels of an image, G groups, B images in a batch, C channels, H W pixels, F bands, S style images

Floats = NDArray[np.float64]
Transfer = Callable[[Pixels, Ints], Pixels]  # images [B, H, W, C] and numbers [B] of style images to images

ROUNDS = 100  # of k-means at most; it ends earlier if no point changes its cluster
KEPT_BYTES = 2**31  # of styled images
FLAT = 1e-6  # least standard deviation of a band to divide by


def style_rows(failures: Failures, *, clusters: int, seed: int) -> Ints:
    """Return the rows of the style images: for each class, one failure from each of its `clusters` clusters."""
    chosen = list[int]()
    for label in np.unique(failures.labels_N).tolist():
        generator = keyed_generator("deeprepair-clusters", seed, label)
        rows = np.flatnonzero(failures.labels_N == label)
        pixels_NP = failures.images_NHWC[rows].reshape(len(rows), -1)
        groups_N = k_means(standardised(pixels_NP), clusters, generator)
        chosen += [int(generator.choice(rows[groups_N == group])) for group in np.unique(groups_N)]
    return np.array(chosen)


def standardised(pixels_NP: NDArray[np.generic]) -> Floats:
    """Scale each pixel to mean 0 and variance 1 over the images; a pixel that is equal in all images becomes 0."""
    x_NP = pixels_NP.astype(np.float64)
    x_NP -= x_NP.mean(0)
    deviation_P = x_NP.std(0)
    scaled: Floats = x_NP / np.where(deviation_P > 0, deviation_P, 1)
    return scaled


def k_means(points_NP: Floats, clusters: int, generator: np.random.Generator) -> Ints:
    """Return the cluster of each point [N]: Lloyd 1982, with k-means++ centres (Arthur & Vassilvitskii 2007).

    There are fewer clusters if there are fewer distinct points. An empty cluster keeps its centre; SciPy's k-means
    would warn about it.
    """
    first = int(generator.integers(len(points_NP)))
    centres_GP = points_NP[first : first + 1]
    while len(centres_GP) < clusters:
        nearest_N = squared_distances(points_NP, centres_GP).min(1)
        nearest_N[nearest_N < 1e-9 * points_NP.shape[1]] = 0  # rounding error of a point that is a centre
        if not nearest_N.any():
            break
        chosen = generator.choice(len(points_NP), p=nearest_N / nearest_N.sum())
        centres_GP = np.concatenate([centres_GP, points_NP[chosen : chosen + 1]])
    groups_N: Ints = squared_distances(points_NP, centres_GP).argmin(1)
    for _ in range(ROUNDS):
        for group in np.unique(groups_N):
            centres_GP[group] = points_NP[groups_N == group].mean(0)
        before_N, groups_N = groups_N, squared_distances(points_NP, centres_GP).argmin(1)
        if (groups_N == before_N).all():
            break
    return groups_N


def squared_distances(points_NP: Floats, centres_GP: Floats) -> Floats:
    """Return the squared distance [N, G] of each point from each centre."""
    products_NG = points_NP @ centres_GP.T
    distances_NG: Floats = (points_NP**2).sum(1)[:, None] - 2 * products_NG + (centres_GP**2).sum(1)
    return distances_NG.clip(0)


class WaveletStatistics:
    """Gives images the mean and standard deviation of a style image, in each channel and band of Haar wavelets.

    This is not WCT². Without a network it transfers no textures and no colours that belong together: each band keeps
    the pattern of the content, such as its edges, and takes over its strength from the style.
    """

    def __init__(self, styles_SHWC_u8: Pixels, device: torch.device) -> None:
        self.device = device
        self.mean_FSC11, self.deviation_FSC11 = band_statistics(haar(self._even(styles_SHWC_u8)))

    def __call__(self, images_BHWC_u8: Pixels, style_B: Ints) -> Pixels:
        height, width = images_BHWC_u8.shape[1:3]
        bands_FBChw = haar(self._even(images_BHWC_u8))
        mean_FBC11, deviation_FBC11 = band_statistics(bands_FBChw)
        style = torch.from_numpy(style_B).to(self.device)
        gain_FBC11 = self.deviation_FSC11[:, style] / deviation_FBC11.clamp(min=FLAT)
        styled = inverse_haar((bands_FBChw - mean_FBC11) * gain_FBC11 + self.mean_FSC11[:, style])
        return to_pixels(styled[:, :, :height, :width])

    def _even(self, images_BHWC_u8: Pixels) -> Tensor:
        """Return float images [B, C, H, W] of even height and width: an odd last row or column is repeated."""
        x_BCHW = torch.from_numpy(images_BHWC_u8).to(self.device).permute(0, 3, 1, 2).float()
        bottom, right = (size % 2 for size in x_BCHW.shape[2:])
        return torch.nn.functional.pad(x_BCHW, (0, right, 0, bottom), mode="replicate")


def band_statistics(bands_FBChw: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [F, B, C, 1, 1] of each image's channels and bands."""
    deviation, mean = torch.std_mean(bands_FBChw, dim=(3, 4), correction=0, keepdim=True)
    return mean, deviation


def to_pixels(images_BCHW: Tensor) -> Pixels:
    """Return images from 0 to 255 as uint8 [B, H, W, C]."""
    pixels: Pixels = images_BCHW.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


class StyledImages:
    """Returns clean images by their rows, each in the style of one failure. An image is made on first use, then kept.

    The style of each row is drawn once, because the published code makes all styled images before training.
    """

    def __init__(self, images_NHWC: PixelRows, transfer: Transfer, *, styles: int, seed: int) -> None:
        self.images_NHWC, self.transfer = images_NHWC, transfer
        generator = keyed_generator("deeprepair-style", seed)
        self.style_N = generator.integers(styles, size=len(images_NHWC))
        self._kept = dict[int, Pixels]()
        self._room = KEPT_BYTES // int(np.prod(images_NHWC.shape[1:]))  # number of images

    def __call__(self, rows_B: Ints) -> Pixels:
        made = dict[int, Pixels]()
        missing = np.array([row for row in np.unique(rows_B).tolist() if row not in self._kept], np.int64)
        if len(missing):
            styled = self.transfer(np.array(self.images_NHWC[missing]), self.style_N[missing])
            made = dict(zip(missing.tolist(), styled, strict=True))
            self._kept |= dict(list(made.items())[: max(0, self._room - len(self._kept))])
        if not len(rows_B):
            return np.empty((0, *self.images_NHWC.shape[1:]), np.uint8)
        return np.stack([made[row] if row in made else self._kept[row] for row in rows_B.tolist()])
