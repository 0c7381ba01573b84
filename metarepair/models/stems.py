"""Replace the stem of a timm model by one for small images.

`imagenet` is the stem as timm builds it: it reduces each side by 4 before the first block, which leaves 8 × 8 of a
32-pixel image. `cifar` is a 3 × 3 convolution at stride 1 without pooling, so the first block sees every pixel (He et
al. 2016, Sec. 4.2; Huang et al. 2017, Sec. 3). All later layers stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timm.models import ConvNeXt, DenseNet, ResNet
from torch import nn

from metarepair.models.van import Van
from tasks.errors import ConfigError

Stem = Literal["imagenet", "cifar"]


@dataclass(frozen=True, kw_only=True)
class StemPlace:
    """The names of a family's first convolution and of the pooling after it, if any, and the kernel size."""

    family: type[nn.Module]
    conv: str
    kernel: int
    pool: str | None


PLACES = (
    StemPlace(family=DenseNet, conv="features.conv0", kernel=7, pool="features.pool0"),
    StemPlace(family=ResNet, conv="conv1", kernel=7, pool="maxpool"),
    StemPlace(family=ConvNeXt, conv="stem.0", kernel=4, pool=None),
    StemPlace(family=Van, conv="patch_embed1.proj", kernel=7, pool=None),
)


def use_small_stem(module: nn.Module, name: str) -> None:
    """Replace the stem of `module`, in place, by a freshly initialised 3 × 3 convolution at stride 1 without pooling.

    Raises ConfigError for a model whose stem is not known, or is not a single convolution.
    """
    place = next((p for p in PLACES if isinstance(module, p.family)), None)
    if place is None:
        families = ", ".join(p.family.__name__ for p in PLACES)
        raise ConfigError(
            f"model.stem=cifar is not known for {name}; it is known for these families of timm: {families}. "
            "Leave model.stem at imagenet (the stem as timm builds it), and enlarge the images by model.input_size."
        )
    old = module.get_submodule(place.conv)
    if not isinstance(old, nn.Conv2d) or old.kernel_size != (place.kernel, place.kernel):
        raise ConfigError(
            f"model.stem=cifar is not known for {name}: its stem is not one {place.kernel} × {place.kernel} "
            "convolution. Choose a member of the family that has one, or leave model.stem at imagenet."
        )
    conv = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
    _initialise(conv, module)
    module.set_submodule(place.conv, conv)
    if place.pool is not None:
        module.set_submodule(place.pool, nn.Identity())


def _initialise(conv: nn.Conv2d, module: nn.Module) -> None:
    """Initialise `conv` as the family of `module` does."""
    if isinstance(module, ConvNeXt):
        nn.init.trunc_normal_(conv.weight, std=0.02)
    elif isinstance(module, DenseNet):
        nn.init.kaiming_normal_(conv.weight)
    else:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
