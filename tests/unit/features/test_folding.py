"""Compare folded batch norms and absorbed paddings with the original layers, and check what must not be folded."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from metarepair.features.folding import absorb_same_padding, fold_batch_norms


def random_state(network: nn.Module) -> nn.Module:
    """The network in float64 and evaluation mode, with batch norms that are far from the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.double().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Pair(nn.Module):
    """A convolution and its batch norm; the subclasses below change `forward`."""

    def __init__(self, conv: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = norm or nn.BatchNorm2d(3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.norm(self.conv(x_BCHW))
        return h_BCHW


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet10t", "mobilenetv1_100"])
def test_folded_timm_models_compute_the_same_outputs(name: str) -> None:
    torch.manual_seed(0)
    network = random_state(timm.create_model(name, num_classes=5))
    x = images(2, 3, 64, 64)
    expected, before = network(x), norms(network)
    assert fold_batch_norms(network) == before
    assert norms(network) == 0
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "pair",
    [
        Pair(),
        Pair(conv=nn.Conv2d(3, 3, 1, stride=2, bias=True)),
        Pair(conv=nn.Conv2d(3, 3, 3, groups=3), norm=nn.BatchNorm2d(3, affine=False, eps=0.1)),
        Pair(conv=Conv2dSame(3, 3, 3, stride=2), norm=BatchNormAct2d(3, act_layer=nn.Tanh)),
    ],
)
def test_a_batch_norm_is_folded_into_the_convolution_before_it(pair: Pair) -> None:
    network = random_state(pair)
    x = images(2, 3, 8, 8)
    expected = network(x)
    assert (expected - network.conv(x)).abs().max() > 0.1
    assert fold_batch_norms(network) == 1
    assert norms(network) == 0
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


class UsedTwice(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv(x_BCHW)
        return torch.cat([h_BCHW, self.norm(h_BCHW)], dim=1)


class CalledTwice(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.conv(self.norm(self.conv(x_BCHW)))
        return h_BCHW


class NormCalledTwice(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.norm(torch.tanh(self.norm(self.conv(x_BCHW))))
        return h_BCHW


class WeightRead(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.norm(self.conv(x_BCHW)) + self.conv.weight.sum()
        return h_BCHW


class Activated(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.norm(torch.tanh(self.conv(x_BCHW)))
        return h_BCHW


class Branching(Pair):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW: Tensor = self.norm(self.conv(x_BCHW)) if x_BCHW.sum() < 1e9 else x_BCHW
        return h_BCHW


class OwnConv(nn.Conv2d):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.tanh(super().forward(x_BCHW))


def hooked() -> Pair:
    pair = Pair()
    pair.conv.register_forward_hook(lambda _, __, output: torch.tanh(output))
    return pair


def parametrized() -> Pair:
    return Pair(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)))


def batch_statistics() -> Pair:
    return Pair(norm=nn.BatchNorm2d(3, track_running_stats=False))


@pytest.mark.parametrize(
    "build",
    [
        UsedTwice,
        CalledTwice,
        NormCalledTwice,
        WeightRead,
        Activated,
        Branching,
        lambda: Pair(conv=OwnConv(3, 3, 1)),
        hooked,
        parametrized,
        batch_statistics,
    ],
)
def test_a_pair_that_is_not_plain_is_left_unchanged(build: Callable[[], nn.Module]) -> None:
    network = random_state(build())
    x = images(2, 3, 8, 8)
    expected = network(x)
    assert fold_batch_norms(network) == 0
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (3, 4)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 12)])
def test_same_padding_is_absorbed_into_the_convolution(
    kernel: int | tuple[int, int], stride: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    convs = [Conv2dSame(4, 6, kernel, stride), Conv2dSame(6, 6, kernel, stride, groups=6, bias=False)]
    network = nn.Sequential(*convs).double()
    x = images(2, 4, *size)
    expected = network(x)
    assert absorb_same_padding(network, x[:1]) == 2
    assert not any(isinstance(module, Conv2dSame) for module in network.modules())
    assert network(x).shape == expected.shape
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-12)


def test_same_padding_of_inputs_of_two_sizes_is_left_unchanged() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Conv2dSame(3, 3, 3, stride=2)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            h_BCHW: Tensor = self.conv(self.conv(x_BCHW))
            return h_BCHW

    network = Shared().double()
    x = images(1, 3, 9, 9)
    expected = copy.deepcopy(network)(x)
    assert absorb_same_padding(network, x) == 0
    assert torch.equal(network(x), expected)
    assert not network.conv._forward_pre_hooks
