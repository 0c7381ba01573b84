"""A narrow ConvNeXt for 32 px images, without batch norm, which the project ships pretrained.

Source: Liu et al. 2022 (the block: a depthwise convolution, layer norm, and two layers with four times the width
between them). It is timm's class with 1, 1, 2, 1 blocks of 32, 64, 96, 128 channels on maps of 16, 8, 4 and 2 px,
3 × 3 kernels for these small maps (7 × 7 takes half as long again), a 4 × 4 stem at stride 2, and no layer scale. 412 k
parameters and 9 M multiply-adds at 32 px. Registered with timm: `timm.create_model("convnext_cifar", num_classes=10)`.
"""

from __future__ import annotations

from typing import Any

from timm.models import ConvNeXt, register_model
from torch import nn

from metarepair.models.own_weights import known_to_timm

DEPTHS = (1, 1, 2, 1)
DIMS = (32, 64, 96, 128)


@register_model  # type: ignore[untyped-decorator]
def convnext_cifar(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """Build a narrow ConvNeXt for 32 px. `pretrained`: see `metarepair.models.own_weights`."""
    known = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate"}
    given = {k: v for k, v in kwargs.items() if k in known}
    # timm, given a stem of stride 2, would also halve the maps before the first block: to 8 px at the first stage.
    module = ConvNeXt(depths=DEPTHS, dims=DIMS, kernel_sizes=3, patch_size=1, ls_init_value=None, **given)
    stem = nn.Conv2d(module.in_chans, DIMS[0], 4, 2, 1)
    nn.init.trunc_normal_(stem.weight, std=0.02)
    assert stem.bias is not None
    nn.init.zeros_(stem.bias)
    module.stem[0] = stem
    for info in module.feature_info:
        info["reduction"] *= 2
    known_to_timm(
        module, "convnext_cifar", stem="stem.0", classifier="head.fc", pretrained=pretrained, arguments=kwargs
    )
    return module
