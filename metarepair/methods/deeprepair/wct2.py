"""Give images the style of other images with the WCT² network and its published weights.

Source: Yoo et al. 2019 (Photorealistic Style Transfer via Wavelet Transforms), Sec. 3, with the layout of its published
weights (github.com/clovaai/WCT2, MIT): VGG-19 up to relu4_1 with wavelet pooling, and a decoder that concatenates the
four bands and the encoder's features (`cat5`). Whitening and colouring: Li et al. 2017 (Universal Style Transfer via
Feature Transforms), Sec. 3.2, at every level of the encoder, the high bands and the decoder. As in the published
program, 1 is added to variances, and results are clamped to the range of the content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metarepair.engine.vectors import State
from metarepair.methods.deeprepair.haar import BANDS, haar, kernels, spread
from metarepair.methods.deeprepair.style import to_pixels
from metarepair.models.weights_file import read_weights
from tasks.errors import WeightsError
from tasks.records import Ints, Pixels

# C channels, n = H·W places, R rank, H W pixels, S style images

ENCODER = {
    "conv0": (3, 3, 1),
    "conv1_1": (64, 3, 3),
    "conv1_2": (64, 64, 3),
    "conv2_1": (128, 64, 3),
    "conv2_2": (128, 128, 3),
    "conv3_1": (256, 128, 3),
    "conv3_2": (256, 256, 3),
    "conv3_3": (256, 256, 3),
    "conv3_4": (256, 256, 3),
    "conv4_1": (512, 256, 3),
}
DECODER = {
    "conv4_1": (256, 512, 3),
    "conv3_4_2": (256, 5 * 256, 3),
    "conv3_3": (256, 256, 3),
    "conv3_2": (256, 256, 3),
    "conv3_1": (128, 256, 3),
    "conv2_2_2": (128, 5 * 128, 3),
    "conv2_1": (64, 128, 3),
    "conv1_2_2": (64, 5 * 64, 3),
    "conv1_1": (3, 64, 3),
}
# Layers of each level, in the order of the forward pass. `pool` is pooling in the encoder, unpooling in the decoder.
DOWN = (
    ("conv0", "conv1_1"),
    ("conv1_2", "pool1", "conv2_1"),
    ("conv2_2", "pool2", "conv3_1"),
    ("conv3_2", "conv3_3", "conv3_4", "pool3", "conv4_1"),
)
UP = (
    ("conv4_1", "pool3", "conv3_4_2", "conv3_3", "conv3_2"),
    ("conv3_1", "pool2", "conv2_2_2"),
    ("conv2_1", "pool1", "conv1_2_2"),
    ("conv1_1",),
)
FILES = {"encoder": "wave_encoder_cat5_l4", "decoder": "wave_decoder_cat5_l4"}
SUFFIXES = (".safetensors", ".pth")
MULTIPLE, SMALLEST = 8, 16  # pixels: three halvings must leave two places or more to reflect
Touch = Callable[[str, Tensor], Tensor]  # the name of a place in the network, and its features [1, C, H, W]


@dataclass(frozen=True, kw_only=True)
class WaveletNet:
    """The WCT² network: the weights of its encoder and decoder, by layer."""

    encoder: State
    decoder: State

    def to(self, device: torch.device) -> WaveletNet:
        encoder, decoder = (
            {k: v.to(device) for k, v in part.items()} for part in (self.encoder, self.decoder)
        )
        return WaveletNet(encoder=encoder, decoder=decoder)

    def through(self, x: Tensor, touch: Touch) -> Tensor:
        """Encode and decode the image [1, 3, H, W]; `touch` may change the features in between."""
        bands, whole = dict[str, Tensor](), dict[str, Tensor]()
        for level, layers in enumerate(DOWN, start=1):
            for layer in layers:
                if layer.startswith("pool"):
                    parts = haar(x)
                    high = [touch(f"{layer} {BANDS[f]}", parts[f]) for f in range(1, len(BANDS))]
                    whole[layer], bands[layer], x = x, torch.stack(high), parts[0]
                else:
                    x = _convolved(x, self.encoder, layer, plain=layer == "conv0")
            x = touch(f"encoder {level}", x)
        for level, layers in enumerate(UP):
            x = touch(f"decoder {level}", x) if level else x
            for layer in layers:
                if layer.startswith("pool"):
                    x = torch.cat([*spread(torch.stack([x, *bands[layer]])), whole[layer]], 1)
                else:
                    x = _convolved(x, self.decoder, layer, plain=layer == UP[-1][-1])
        return x


def _convolved(x: Tensor, state: State, layer: str, *, plain: bool) -> Tensor:
    """Apply a 3 × 3 convolution with reflected edges, or a 1 × 1 one; ReLU follows unless the layer is `plain`."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    edge = weight.shape[2] // 2
    x = F.conv2d(F.pad(x, (edge,) * 4, mode="reflect") if edge else x, weight, bias)
    return x if plain else x.relu()


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and covariance Σ of features, with Σ = U diag(λ) Uᵀ."""

    mean_C1: Tensor
    directions_CR: Tensor
    variances_R: Tensor

    def power(self, x_Cn: Tensor, exponent: float) -> Tensor:
        """Return (Σ + 1)^exponent · x, where 1 is the identity."""
        gains_R = (self.variances_R + 1) ** exponent - 1
        return x_Cn + self.directions_CR @ (gains_R[:, None] * (self.directions_CR.T @ x_Cn))


def spread_of(features_Cn: Tensor) -> Spread:
    """Return mean and covariance of features at n places.

    It uses the singular values of the features, because small images have fewer places than channels.
    """
    mean_C1 = features_Cn.mean(1, keepdim=True)
    directions_CR, values_R, _ = torch.linalg.svd(features_Cn - mean_C1, full_matrices=False)
    variances_R = values_R**2 / max(features_Cn.shape[1] - 1, 1)
    return Spread(mean_C1=mean_C1, directions_CR=directions_CR, variances_R=variances_R)


def recoloured(features_Cn: Tensor, style: Spread) -> Tensor:
    """Whiten content features, then give them the covariance and mean of the style."""
    content = spread_of(features_Cn)
    white_Cn = content.power(features_Cn - content.mean_C1, -0.5)
    coloured_Cn = style.power(white_Cn, 0.5) + style.mean_C1
    return coloured_Cn.clamp(features_Cn.min(), features_Cn.max())


class WhiteningColouring:
    """Gives images the style of style images, one at a time, so that the result does not depend on the batch."""

    def __init__(self, net: WaveletNet, styles_SHWC_u8: Pixels, device: torch.device) -> None:
        self.net, self.device = net.to(device), device
        self.styles = [self._style(image) for image in styles_SHWC_u8]

    @torch.inference_mode()
    def __call__(self, images_BHWC_u8: Pixels, style_B: Ints) -> Pixels:
        height, width = images_BHWC_u8.shape[1:3]
        styled = [
            to_pixels(255 * self._transferred(image, self.styles[style])[:, :, :height, :width])
            for image, style in zip(images_BHWC_u8, style_B.tolist(), strict=True)
        ]
        return np.concatenate(styled)

    def _transferred(self, image_HWC_u8: Pixels, style: dict[str, Spread]) -> Tensor:
        def touch(place: str, features: Tensor) -> Tensor:
            return recoloured(features[0].flatten(1), style[place]).view_as(features)

        return self.net.through(self._input(image_HWC_u8), touch)

    @torch.inference_mode()
    def _style(self, image_HWC_u8: Pixels) -> dict[str, Spread]:
        spreads = dict[str, Spread]()

        def touch(place: str, features: Tensor) -> Tensor:
            spreads[place] = spread_of(features[0].flatten(1))
            return features

        self.net.through(self._input(image_HWC_u8), touch)
        return spreads

    def _input(self, image_HWC_u8: Pixels) -> Tensor:
        """Return the image from 0 to 1 as [1, 3, H, W].

        The edge is repeated at the bottom and at the right, up to a size that can be halved three times.
        """
        x = torch.from_numpy(image_HWC_u8).to(self.device).permute(2, 0, 1)[None].float() / 255
        bottom, right = (max(SMALLEST, -(-size // MULTIPLE) * MULTIPLE) - size for size in x.shape[2:])
        return F.pad(x, (0, right, 0, bottom), mode="replicate")


def load_wct2(folder: Path) -> WaveletNet:
    """Load the published weights. Raises WeightsError that names a missing file, or a tensor of another layout."""
    folder = folder.expanduser()
    return WaveletNet(
        encoder=_load(folder, FILES["encoder"], ENCODER), decoder=_load(folder, FILES["decoder"], DECODER)
    )


def _load(folder: Path, name: str, layers: dict[str, tuple[int, int, int]]) -> State:
    path = next((p for p in (folder / f"{name}{s}" for s in SUFFIXES) if p.is_file()), None)
    if path is None:
        raise WeightsError(
            f"methods.deeprepair.weights: no {name}.pth or {name}.safetensors in {folder}. Put both files of "
            "github.com/clovaai/WCT2 (model_checkpoints) into one folder, and give that folder."
        )
    tensors = read_weights(path).tensors
    wanted: dict[str, tuple[int, ...]] = {}
    for layer, (out, into, side) in layers.items():
        wanted |= {f"{layer}.weight": (out, into, side, side), f"{layer}.bias": (out,)}
    for key, shape in wanted.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            problem = f"has the shape {list(tensors[key].shape)}" if key in tensors else "is missing"
            raise WeightsError(
                f"{path} is not the WCT² network with `cat5`: its {key} {problem}; it must have the shape "
                f"{list(shape)}. Give the published {name}.pth."
            )
    for key, tensor in tensors.items():
        band = key.removesuffix(".weight").rpartition(".")[2]
        if band in BANDS and not torch.allclose(tensor, kernels(tensor)[BANDS.index(band)].expand_as(tensor)):
            raise WeightsError(
                f"{path} has a wavelet in {key} that is not Haar's. Give the published {name}.pth."
            )
    return {key: tensors[key].float() for key in wanted}
