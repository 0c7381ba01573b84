"""The Visual Attention Network, VAN-B0 to VAN-B6.

Source: Guo et al. 2022, "Visual Attention Network" (arXiv 2202.09741), Fig. 3 and Table 3. Each stage halves the sides
of the map (the first reduces them by 4) and stacks blocks of large kernel attention and a convolutional feed-forward.
Parameters have the names of the authors' release, so its checkpoints load as they are, and a repaired DNN can be saved
in its format; `checkpoint_filter_fn` maps OpenMMLab's names to them. Registered with timm:
`timm.create_model("van_b2")`.

Legend: B images, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, LayerNorm2d, calculate_drop_path_rates, create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.models.own_weights import check_pretrained

Four = tuple[int, int, int, int]

VARIANTS: Mapping[str, tuple[Four, Four]] = {  # widths and depths by stage
    "van_b0": ((32, 64, 160, 256), (3, 3, 5, 2)),  # "tiny", 4.1 M parameters for 1,000 classes
    "van_b1": ((64, 128, 320, 512), (2, 2, 4, 2)),  # "small", 13.9 M
    "van_b2": ((64, 128, 320, 512), (3, 3, 12, 3)),  # "base", 26.6 M
    "van_b3": ((64, 128, 320, 512), (3, 5, 27, 3)),  # "large", 44.8 M
    "van_b4": ((64, 128, 320, 512), (3, 6, 40, 3)),  # 60.3 M
    "van_b5": ((96, 192, 480, 768), (3, 3, 24, 3)),  # 90.0 M
    "van_b6": ((96, 192, 384, 768), (6, 6, 90, 6)),  # 199.8 M
}
EXPANSIONS = (8, 8, 4, 4)  # hidden width of the feed-forward over its width, by stage
LAYER_SCALE = 1e-2


class LargeKernelAttention(nn.Module):
    """x times its attention: depthwise 5 × 5, depthwise 7 × 7 at dilation 3, 1 × 1, for a 21 × 21 kernel (Eq. 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv_spatial = nn.Conv2d(width, width, 7, padding=9, dilation=3, groups=width)
        self.conv1 = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        gated: Tensor = x_BCHW * self.conv1(self.conv_spatial(self.conv0(x_BCHW)))
        return gated


class SpatialAttention(nn.Module):
    """Large kernel attention between two 1 × 1 convolutions, with a shortcut around all three."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(width, width, 1)
        self.spatial_gating_unit = LargeKernelAttention(width)
        self.proj_2 = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        attended: Tensor = self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x_BCHW))))
        return x_BCHW + attended


class FeedForward(nn.Module):
    """1 × 1 to the hidden width, depthwise 3 × 3, GELU, 1 × 1 back."""

    def __init__(self, width: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.dwconv = _named(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))
        self.fc2 = nn.Conv2d(hidden, width, 1)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden_BCHW = self.drop(F.gelu(self.dwconv(self.fc1(x_BCHW))))
        out_BCHW: Tensor = self.drop(self.fc2(hidden_BCHW))
        return out_BCHW


class Block(nn.Module):
    """Attention, then feed-forward; each preceded by a batch norm, scaled by channel, with a shortcut."""

    def __init__(self, width: int, expansion: int, drop_rate: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.attn = SpatialAttention(width)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = FeedForward(width, expansion * width, drop_rate)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scale_1, scale_2 = self.layer_scale_1.view(-1, 1, 1), self.layer_scale_2.view(-1, 1, 1)
        x_BCHW = x_BCHW + self.drop_path(scale_1 * self.attn(self.norm1(x_BCHW)))
        y_BCHW: Tensor = self.drop_path(scale_2 * self.mlp(self.norm2(x_BCHW)))
        return x_BCHW + y_BCHW


class Van(nn.Module):
    """Four stages of patch embedding, blocks and layer norm; global average, linear head; with timm's interface."""

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        widths: Four,
        depths: Four,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.in_chans = in_chans
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"norm{i + 1}"}
            for i, width in enumerate(widths)
        ]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        channels = (in_chans, *widths)
        for i, width in enumerate(widths):
            blocks = (Block(width, EXPANSIONS[i], proj_drop_rate, rates[i][j]) for j in range(depths[i]))
            self.add_module(f"patch_embed{i + 1}", _patch_embed(channels[i], width, first=i == 0))
            self.add_module(f"block{i + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{i + 1}", LayerNorm2d(width, eps=1e-6))
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool: nn.Module
        self.head: nn.Module
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new head for `num_classes` (0: no head), and another pooling if one is given ("": no pooling)."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.head = create_classifier(self.num_features, num_classes, pool_type=pool)
        self.head_hidden_size = self.num_features * (2 if pool == "catavgmax" else 1)
        init_weights(self.head)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        for stage in range(4):
            x_BCHW = self._stage(stage, x_BCHW)
        return x_BCHW

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002  every stage ends in its norm, whose output the next stage takes
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of stages as timm's models do; `indices`: a number of last stages, or a list; None: all."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}; VAN's maps are NCHW only")
        wanted, last = feature_take_indices(4, indices)
        found = []
        for stage in range(last + 1 if stop_early or intermediates_only else 4):
            x = self._stage(stage, x)
            if stage in wanted:
                found.append(x)
        return found if intermediates_only else (x, found)

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        x_BD = self.head_drop(self.global_pool(x_BCHW))
        logits: Tensor = x_BD if pre_logits else self.head(x_BD)
        return logits

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_BCHW))

    def _stage(self, stage: int, x_BCHW: Tensor) -> Tensor:
        for part in ("patch_embed", "block", "norm"):
            x_BCHW = self.get_submodule(f"{part}{stage + 1}")(x_BCHW)
        return x_BCHW


def _patch_embed(in_channels: int, width: int, *, first: bool) -> nn.Module:
    """Build the overlapping patch embedding: 7 × 7 at stride 4 first, 3 × 3 at stride 2 later, and a batch norm."""
    kernel, stride = (7, 4) if first else (3, 2)
    conv = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2)
    return _named(proj=conv, norm=nn.BatchNorm2d(width))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def init_weights(module: nn.Module) -> None:
    """Initialise convolutions by their fan-out within a group, the head with standard deviation 0.02, biases with 0."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_OPENMMLAB = (
    (r"^backbone\.", ""),
    (r"^head\.fc\.", "head."),
    (r"^(patch_embed\d)\.projection\.", r"\1.proj."),
    (r"^blocks(\d)\.", r"block\1."),
    (r"\.mlp\.dwconv\.(?=weight|bias)", ".mlp.dwconv.dwconv."),
    (r"\.DW_conv\.", ".conv0."),
    (r"\.DW_D_conv\.", ".conv_spatial."),
)


def checkpoint_filter_fn(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:  # noqa: ARG001
    """Return the tensors of a published checkpoint (the authors' or OpenMMLab's) under our names, for timm.

    Takes them out of `state_dict`, and removes the prefix `module.` of data-parallel training.
    """
    state = checkpoint.get("state_dict", checkpoint)
    return {_own_key(key.removeprefix("module.")): tensor for key, tensor in state.items()}


def _own_key(key: str) -> str:
    for pattern, replacement in _OPENMMLAB:
        key = re.sub(pattern, replacement, key)
    return key


# The authors trained with timm 0.4.12 and its defaults: pixels in −1..1, not ImageNet's mean and standard deviation.
default_cfgs = generate_default_cfgs(
    {
        variant: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_INCEPTION_MEAN,
            "std": IMAGENET_INCEPTION_STD,
            "first_conv": "patch_embed1.proj",
            "classifier": "head",
        }
        for variant in VARIANTS
    }
)


def _register(variant: str) -> None:
    """Register `variant` with timm, so that `timm.create_model` builds it."""
    widths, depths = VARIANTS[variant]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            check_pretrained(variant, kwargs)
        kwargs = {"widths": widths, "depths": depths} | kwargs
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
        made: nn.Module = build_model_with_cfg(
            Van,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=features,
            **kwargs,
        )
        return made

    build.__name__ = variant
    register_model(build)


for _variant in VARIANTS:
    _register(_variant)
