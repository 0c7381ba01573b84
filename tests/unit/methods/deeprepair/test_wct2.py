"""Test WCT²: the network of the paper's figure, recolouring by full covariances, and the check of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.clean_images import CleanImages
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.deeprepair import wct2
from metarepair.methods.deeprepair.haar import BANDS
from metarepair.methods.deeprepair.method import DeepRepairSettings
from metarepair.methods.deeprepair.wct2 import (
    WaveletNet,
    WhiteningColouring,
    load_wct2,
    recoloured,
    spread_of,
)
from metarepair.methods.registry import get_method, method_settings
from metarepair.models.build import DeployedModel
from small import deployed_of, failures_of
from tasks.errors import WeightsError
from tasks.records import Pixels

CPU = torch.device("cpu")
SIZE = 16
TINY = 16  # divisor of VGG-19's channels


def images(count: int, *, seed: int, contrast: float, mean: float = 128) -> Pixels:
    found = np.random.default_rng(seed).normal(mean, contrast, (count, SIZE, SIZE, 3))
    return found.clip(0, 255).round().astype(np.uint8)


def deployed() -> DeployedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 3)).eval()
    return deployed_of(module)


def data() -> RepairData:
    labels = np.arange(12) % 3
    failures = failures_of(labels, images(12, seed=5, contrast=10, mean=180), corruption="fog")
    clean = CleanImages(images_NHWC=images(8, seed=2, contrast=30), labels_N=labels[:8])
    return RepairData(target="fog", learn=failures, validation=failures.take(np.arange(3)), clean=clean)


def test_recolouring_is_whitening_and_colouring_by_full_covariances() -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, places in ((6, 40), (12, 5)):  # more pixels than channels, and fewer
        content, style = (
            scale
            * torch.randn(channels, channels, generator=generator, dtype=torch.float64)
            @ torch.randn(channels, places, generator=generator, dtype=torch.float64)
            for scale in (1.0, 0.4)
        )
        whole = []
        for features, power in ((content, -0.5), (style, 0.5)):
            covariance = torch.cov(features) + torch.eye(channels, dtype=torch.float64)
            values, vectors = torch.linalg.eigh(covariance)
            whole.append(vectors @ torch.diag(values**power) @ vectors.T)
        centred = content - content.mean(1, keepdim=True)
        expected = whole[1] @ whole[0] @ centred + style.mean(1, keepdim=True)
        found = recoloured(content, spread_of(style))
        torch.testing.assert_close(found, expected.clamp(content.min(), content.max()))
        torch.testing.assert_close(recoloured(content, spread_of(content)), content)


def tiny(layers: dict[str, tuple[int, int, int]], seed: int) -> dict[str, Tensor]:
    generator, state = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, (out, into, side) in layers.items():
        out, into = (n if n == 3 else n // TINY for n in (out, into))
        scale = (2 / (into * side**2)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(out, into, side, side, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return state


@pytest.fixture
def tiny_net() -> WaveletNet:
    return WaveletNet(encoder=tiny(wct2.ENCODER, 0), decoder=tiny(wct2.DECODER, 1))


def test_wct2_is_the_network_of_its_figure(tiny_net: WaveletNet) -> None:
    down, up = tiny_net.encoder, tiny_net.decoder

    def conv(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
        padded = nn.ReflectionPad2d(1)(x)
        return F.conv2d(padded, state[f"{name}.weight"], state[f"{name}.bias"]).relu()

    def filters(channels: int) -> list[Tensor]:
        low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([-1.0, 1.0]) / 2**0.5
        pairs = ((low, low), (low, high), (high, low), (high, high))
        return [torch.outer(a, b).expand(channels, 1, 2, 2) for a, b in pairs]

    x = torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(2))
    y, skips = F.conv2d(x, down["conv0.weight"], down["conv0.bias"]), []
    for block in (
        ("conv1_1", "conv1_2"),
        ("conv2_1", "conv2_2"),
        ("conv3_1", "conv3_2", "conv3_3", "conv3_4"),
    ):
        for name in block:
            y = conv(y, down, name)
        bands = [F.conv2d(y, f, stride=2, groups=y.shape[1]) for f in filters(y.shape[1])]
        skips.append((bands[1:], y))
        y = bands[0]
    y = conv(conv(y, down, "conv4_1"), up, "conv4_1")
    for block in (
        ("conv3_4_2", "conv3_3", "conv3_2", "conv3_1"),
        ("conv2_2_2", "conv2_1"),
        ("conv1_2_2",),
    ):
        high, whole = skips.pop()
        bands = zip((y, *high), filters(y.shape[1]), strict=True)
        y = torch.cat([F.conv_transpose2d(b, f, stride=2, groups=b.shape[1]) for b, f in bands] + [whole], 1)
        for name in block:
            y = conv(y, up, name)
    y = F.conv2d(nn.ReflectionPad2d(1)(y), up["conv1_1.weight"], up["conv1_1.bias"])
    torch.testing.assert_close(tiny_net.through(x, lambda _, features: features), y)


def test_layers_are_those_of_vgg19_up_to_relu4_1() -> None:
    with torch.device("meta"):
        layers = [m for m in torchvision.models.vgg19().features if isinstance(m, nn.Conv2d)]
    shapes = [tuple(m.weight.shape[:3]) for m in layers[: len(wct2.ENCODER) - 1]]
    assert shapes == [shape for name, shape in wct2.ENCODER.items() if name != "conv0"]


def test_wct2_takes_the_style_of_each_image_alone(tiny_net: WaveletNet) -> None:
    content, styles = images(3, seed=0, contrast=30), images(2, seed=1, contrast=10, mean=80)
    transfer = WhiteningColouring(tiny_net, styles, CPU)
    together = transfer(content, np.array([0, 1, 1]))
    assert together.shape == content.shape
    assert np.array_equal(together[1:2], transfer(content[1:2], np.array([1])))
    assert not np.array_equal(together[1:2], transfer(content[1:2], np.array([0])))
    x = transfer._input(content[0])
    own = WhiteningColouring(tiny_net, content[:1], CPU).styles[0]
    torch.testing.assert_close(
        transfer._transferred(content[0], own), tiny_net.through(x, lambda _, f: f), rtol=1e-3, atol=1e-3
    )
    small = transfer(content[:, :11, :9], np.array([0, 0, 1]))  # too small, and not a multiple of 8
    assert small.shape == (3, 11, 9, 3)


def haar_keys(name: str, channels: int) -> dict[str, Tensor]:
    signs = dict(zip(BANDS, [[1, 1, 1, 1], [-1, 1, -1, 1], [-1, -1, 1, 1], [1, -1, -1, 1]], strict=True))
    return {
        f"{name}.{band}.weight": torch.tensor(s).view(1, 1, 2, 2).repeat(channels, 1, 1, 1) / 2
        for band, s in signs.items()
    }


@pytest.fixture
def weights(tmp_path: Path, tiny_net: WaveletNet, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights files in the published layout, for a smaller network."""
    for table in ("ENCODER", "DECODER"):
        small = {
            k: (*(n if n == 3 else n // TINY for n in v[:2]), v[2]) for k, v in getattr(wct2, table).items()
        }
        monkeypatch.setattr(wct2, table, small)
    torch.save(tiny_net.encoder | haar_keys("pool1", 4), tmp_path / "wave_encoder_cat5_l4.pth")
    save_file(tiny_net.decoder | haar_keys("recon_block3", 16), tmp_path / "wave_decoder_cat5_l4.safetensors")
    return tmp_path


def test_published_weights_are_loaded_and_used(weights: Path, tiny_net: WaveletNet) -> None:
    net = load_wct2(weights)
    assert net.encoder.keys() == tiny_net.encoder.keys()
    assert torch.equal(net.decoder["conv3_4_2.weight"], tiny_net.decoder["conv3_4_2.weight"])
    settings = method_settings("deeprepair", {"style": "wct2", "weights": str(weights), "patience": None})
    get_method("deeprepair").check(deployed().module, settings)
    context = MethodContext(
        config=RepairConfig(), seed=0, settings=settings, budget=Budget(parse_limit("2steps"))
    )
    found = get_method("deeprepair").repair(deployed(), data(), context)
    assert found.gradient_steps == 2
    assert "style by WCT²" in found.notes[0]


def test_wrong_weights_are_refused_before_any_work(weights: Path) -> None:
    settings = DeepRepairSettings(style="wct2", weights=str(weights))
    path = weights / "wave_encoder_cat5_l4.pth"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"conv2_1.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match=r"conv2_1\.weight has the shape"):
        get_method("deeprepair").check(deployed().module, settings)
    torch.save(state | {"pool1.LH.weight": torch.zeros(4, 1, 2, 2)}, path)
    with pytest.raises(WeightsError, match=r"a wavelet in pool1\.LH\.weight that is not Haar"):
        load_wct2(weights)
    path.unlink()
    with pytest.raises(WeightsError, match=r"no wave_encoder_cat5_l4\.pth"):
        load_wct2(weights)
