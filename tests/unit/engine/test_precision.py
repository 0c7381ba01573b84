"""Compare the meta-gradients of timm's nets in float32 and float64."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from metarepair.engine.inner import FunctionalNet
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import flatten


def timm_gradient(name: str, dtype: torch.dtype, **options: Any) -> Tensor:
    """Return the meta-gradient of a timm net at 32 px, or at the net's own size if that is fixed.

    The rate is small: a memorised task has a loss near zero, below the resolution of float32.
    """
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=3, **options).to(dtype)
    for parent in list(module.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, key, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    size = module.default_cfg["input_size"][1] if module.default_cfg.get("fixed_input_size") else 32
    net = FunctionalNet(module, InnerRule(steps=2, rate=0.01, batch_norm="adapt"))
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    part = Batch(images_BCHW=images, labels_B=torch.arange(8) % 3)
    found = task_gradient(net, net.parameters(), net.buffers(), TaskBatch(support=part, query=part))
    return flatten(found.gradient).double()


# Smooth activations: at random weights a rounding error can flip a ReLU or a maximum, and then even a
# single gradient of plain DenseNet-121 differs by 1e-2 between float32 and float64 (docs/log.md).
SMOOTH = {"densenet121": {"act_layer": "silu"}, "convnext_tiny": {}, "test_vit": {}}


@pytest.mark.parametrize(
    "name", ["densenet121", pytest.param("convnext_tiny", marks=pytest.mark.slow), "test_vit"]
)
def test_float32_agrees_with_float64(name: str) -> None:
    single, double = (timm_gradient(name, dtype, **SMOOTH[name]) for dtype in (torch.float32, torch.float64))
    assert float((single - double).norm() / double.norm()) < 1e-3
