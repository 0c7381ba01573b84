"""Compare the FID Inception with torch-fidelity's network and with torchmetrics' FID, on the same weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchmetrics.image.fid import FrechetInceptionDistance

from metarepair.features.extractors import FeatureExtractor, Pixels, build_extractor
from metarepair.features.inception import (
    ConvBlock,
    build_fid_inception,
    fold_fid_inception,
    load_fid_inception,
    resize_like_tensorflow_1,
)
from metarepair.features.inception_weights import FILE_NAMES
from tasks.distances.frechet import frechet_distance, moments
from tasks.errors import DataError, WeightsError


def smooth_images(seed: int, count: int, height: int, width: int) -> Tensor:
    """uint8 [B, 3, H, W] with structure at several scales, as natural images have."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, height, width)
    for cells in (2, 5, 12):
        noise = torch.randn(count, 3, cells, cells, generator=generator)
        total += torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    return (128 + 45 * total).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout, with batch norms calibrated so that features do not collapse."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_fid_inception()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(smooth_images(1, 6, 32, 32))
    file = tmp_path_factory.mktemp("weights") / FILE_NAMES[0]
    torch.save(network.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def reference(weights_file: Path) -> torch.nn.Module:
    network: torch.nn.Module = FeatureExtractorInceptionV3(
        "reference", ["2048"], feature_extractor_weights_path=str(weights_file)
    )
    return network


@pytest.fixture(scope="module")
def extractor(weights_file: Path) -> FeatureExtractor:
    """The extractor that users get: batch norms folded, channels last, a few images at a time."""
    return build_extractor(
        "inception", weights=weights_file, deployed=None, mean=(), std=(), device=torch.device("cpu")
    )


def pixels(images_BCHW_u8: Tensor) -> Pixels:
    return np.ascontiguousarray(images_BCHW_u8.permute(0, 2, 3, 1).numpy())


def test_features_and_fid_equal_those_of_torch_fidelity(
    extractor: FeatureExtractor, reference: torch.nn.Module
) -> None:
    ours, theirs = [], []
    with torch.inference_mode():
        for images in (smooth_images(2, 3, 32, 32), 255 - smooth_images(3, 2, 32, 32) // 2):
            ours.append(extractor(pixels(images)))
            theirs.append(reference(images)[0].numpy())
    scale = np.abs(theirs[0]).max()
    assert theirs[0].std(axis=0).mean() > 0.01 * scale  # the features differ between images
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == np.float32
        assert np.abs(x - y).max() <= 1e-4 * scale
        assert np.sqrt(np.square(x - y).mean()) <= 1e-5 * scale
    fids = [frechet_distance(*map(moments, features)) for features in (ours, theirs)]
    assert fids[0] > 0.0
    assert fids[0] == pytest.approx(fids[1], rel=1e-3)


@pytest.mark.slow
def test_the_fid_equals_that_of_torchmetrics(extractor: FeatureExtractor, weights_file: Path) -> None:
    # antialias=False is the resize of TensorFlow 1. No published FID uses the default, another resize.
    metric = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(weights_file), antialias=False
    )
    sets = (smooth_images(6, 20, 32, 32), smooth_images(7, 20, 32, 32) // 2)
    for images, real in zip(sets, (True, False), strict=True):
        metric.update(images, real=real)
    ours = frechet_distance(*(moments(extractor(pixels(images))) for images in sets))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)


def test_the_unfolded_network_has_the_same_features(weights_file: Path, extractor: FeatureExtractor) -> None:
    images = smooth_images(8, 2, 32, 32)
    with torch.inference_mode():
        unfolded = load_fid_inception(weights_file)(images).numpy()
    folded = extractor(pixels(images))
    assert not np.array_equal(folded, unfolded)  # the computation differs
    assert np.sqrt(np.square(folded - unfolded).mean()) <= 1e-5 * np.abs(unfolded).max()


def test_in_float64_every_folded_block_equals_the_unfolded_one(weights_file: Path) -> None:
    network = load_fid_inception(weights_file).double()
    generator = torch.Generator().manual_seed(0)
    blocks = [module for module in network.modules() if isinstance(module, ConvBlock)]
    inputs = [
        torch.randn(1, block.conv.in_channels, 7, 7, generator=generator, dtype=torch.float64)
        for block in blocks
    ]
    expected = [block(x) for block, x in zip(blocks, inputs, strict=True)]
    assert fold_fid_inception(network) is network
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for block, x, y in zip(blocks, inputs, expected, strict=True):
        torch.testing.assert_close(block(x), y, rtol=0, atol=1e-12 * float(y.abs().max()))
        assert y.max() > 0


def test_features_agree_on_larger_oblong_images(weights_file: Path, reference: torch.nn.Module) -> None:
    images = smooth_images(4, 2, 310, 75)
    with torch.inference_mode():
        ours, theirs = load_fid_inception(weights_file)(images), reference(images)[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (299, 299), (400, 310), (1, 1)])
def test_resize_equals_that_of_tensorflow_1_bit_for_bit(size: tuple[int, int]) -> None:
    images = smooth_images(5, 1, *size).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    assert torch.equal(resize_like_tensorflow_1(images, 299), expected)


def test_half_precision_safetensors_without_batch_counters_are_loaded(
    weights_file: Path, tmp_path: Path
) -> None:
    state = torch.load(weights_file, weights_only=True)
    half = {k: v.half() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(half, tmp_path / "half.safetensors")
    network = load_fid_inception(tmp_path / "half.safetensors")
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["fc.weight"], state["fc.weight"].half().float())
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_a_file_of_another_network_is_refused_with_the_differences(
    weights_file: Path, tmp_path: Path
) -> None:
    state = torch.load(weights_file, weights_only=True)
    small = {k: v for k, v in state.items() if not k.startswith("Mixed_7c.")}
    small |= {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(3)}
    torch.save(small, tmp_path / "torchvision.pth")
    with pytest.raises(WeightsError) as error:
        load_fid_inception(tmp_path / "torchvision.pth")
    for part in ("1 unexpected, 1 of another shape", "first missing: Mixed_7c.branch1x1", "published file"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_damaged_file_is_refused_with_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=f"{name} is a web page .*Download the file itself"):
        load_fid_inception(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=f"{name} is empty. Copy it again"):
        load_fid_inception(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_other_objects_is_refused_with_the_remedy_and_no_warning(
    tmp_path: Path, protocol: int
) -> None:
    (tmp_path / "foreign.pth").write_bytes(pickle.dumps({"a": Path("a")}, protocol=protocol))
    with pytest.raises(
        WeightsError, match=r"is a pickle.*more than tensors.*refused.*torch\.save\(model\.state_dict"
    ):
        load_fid_inception(tmp_path / "foreign.pth")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(build_fid_inception, tmp_path / "function.pth")
    with pytest.raises(WeightsError, match=r"holds more than tensors .*refused"):
        load_fid_inception(tmp_path / "function.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds list, not tensors by name"):
        load_fid_inception(tmp_path / "list.pth")


def test_anything_but_uint8_colour_images_is_refused() -> None:
    with torch.device("meta"):
        network = build_fid_inception()
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(DataError, match="uint8 images"):
            network(images)
