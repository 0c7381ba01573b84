"""The FID Inception against torch-fidelity's own network with the same weights, and the ways to its file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from metarepair.models import inception
from metarepair.models.inception import (
    FILE_NAMES,
    PUBLISHED,
    build_fid_inception,
    download_fid_inception,
    load_fid_inception,
    resize_like_tensorflow_1,
)
from tasks.errors import DataError, WeightsError
from tasks.frechet import frechet_distance, moments


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
    """Random weights in the published layout, batch norms calibrated so that features do not collapse."""
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


@pytest.fixture(autouse=True)
def no_weights_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home, a torch.hub and an environment without weights."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("METAREPAIR_WEIGHTS", raising=False)


def test_features_and_fid_are_those_of_torch_fidelity(weights_file: Path, reference: torch.nn.Module) -> None:
    network = load_fid_inception(weights_file)
    ours, theirs = [], []
    with torch.inference_mode():
        for images in (smooth_images(2, 5, 32, 32), 255 - smooth_images(3, 4, 32, 32) // 2):
            ours.append(network(images).numpy())
            theirs.append(reference(images)[0].numpy())
    scale = np.abs(theirs[0]).max()
    assert theirs[0].std(axis=0).mean() > 0.01 * scale  # they tell images apart
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == np.float32
        assert np.abs(x - y).max() <= 1e-4 * scale
    fids = [frechet_distance(*map(moments, features)) for features in (ours, theirs)]
    assert fids[0] > 0.0
    assert fids[0] == pytest.approx(fids[1], rel=1e-3)


def test_features_agree_on_larger_oblong_images(weights_file: Path, reference: torch.nn.Module) -> None:
    images = smooth_images(4, 2, 310, 75)
    with torch.inference_mode():
        ours, theirs = load_fid_inception(weights_file)(images), reference(images)[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (299, 299), (400, 310), (1, 1)])
def test_resize_is_tensorflow_1_bit_for_bit(size: tuple[int, int]) -> None:
    images = smooth_images(5, 1, *size).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    assert torch.equal(resize_like_tensorflow_1(images, 299), expected)


def test_weights_are_found_by_path_environment_and_cache(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inception.find_fid_inception(weights_file) == weights_file
    assert inception.find_fid_inception(weights_file.parent) == weights_file
    for place in (weights_file, weights_file.parent):
        monkeypatch.setenv("METAREPAIR_WEIGHTS", str(place))
        assert inception.find_fid_inception(None) == weights_file
    monkeypatch.delenv("METAREPAIR_WEIGHTS")
    hub = tmp_path / "torch" / "hub" / "checkpoints" / FILE_NAMES[1]
    cache = tmp_path / "home" / ".cache" / "metarepair" / FILE_NAMES[1]
    for file in (hub, cache):  # our own cache comes first
        file.parent.mkdir(parents=True)
        file.symlink_to(weights_file)
        assert inception.find_fid_inception(None) == file
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(tmp_path))  # a directory of other weights
    assert inception.find_fid_inception(None) == cache


def test_without_weights_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError) as error:
        load_fid_inception(None)
    for part in (
        *FILE_NAMES[:2],
        *PUBLISHED,
        "METAREPAIR_WEIGHTS",
        ".cache/metarepair",
        "efficientnet_lite0",
    ):
        assert part in str(error.value)
    monkeypatch.setenv("METAREPAIR_WEIGHTS", str(tmp_path / "gone.pth"))
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        load_fid_inception(None)


def test_a_path_that_is_not_there_is_not_replaced_by_the_cache(weights_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / ".cache" / "metarepair" / FILE_NAMES[0]
    cache.parent.mkdir(parents=True)
    cache.symlink_to(weights_file)
    with pytest.raises(WeightsError, match=r"mistyped\.pth"):
        load_fid_inception(tmp_path / "mistyped.pth")


def test_safetensors_in_half_precision_without_counters_load_too(weights_file: Path, tmp_path: Path) -> None:
    state = torch.load(weights_file, weights_only=True)
    half = {k: v.half() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(half, tmp_path / "half.safetensors")
    network = load_fid_inception(tmp_path / "half.safetensors")
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["fc.weight"], state["fc.weight"].half().float())
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_a_wrong_file_is_told_apart(weights_file: Path, tmp_path: Path) -> None:
    state = torch.load(weights_file, weights_only=True)
    small = {k: v for k, v in state.items() if not k.startswith("Mixed_7c.")}
    small |= {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(3)}
    torch.save(small, tmp_path / "torchvision.pth")
    with pytest.raises(WeightsError) as error:
        load_fid_inception(tmp_path / "torchvision.pth")
    for part in (
        "missing (Mixed_7c.branch1x1",
        "1 not in the network (AuxLogits",
        "1 of another shape (fc.weight",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_damaged_file_is_told_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=f"{name} cannot be read"):
        load_fid_inception(tmp_path / name)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(build_fid_inception, tmp_path / "function.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_fid_inception(tmp_path / "function.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load_fid_inception(tmp_path / "list.pth")


def test_anything_but_uint8_colour_images_is_refused() -> None:
    with torch.device("meta"):
        network = build_fid_inception()
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(DataError, match="uint8 images"):
            network(images)


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    source = tmp_path / FILE_NAMES[0]
    source.write_bytes(b"weights")
    with pytest.raises(WeightsError, match="allow_download=True"):
        download_fid_inception(source.as_uri())
    assert not (tmp_path / "home").exists()


def test_a_download_is_checked_by_its_sha_256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / FILE_NAMES[0]
    source.write_bytes(b"weights")
    with pytest.raises(WeightsError, match="invalid hash"):
        download_fid_inception(source.as_uri(), allow_download=True)
    cache = tmp_path / "home" / ".cache" / "metarepair"
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(inception, "HASH_PREFIX", hashlib.sha256(b"weights").hexdigest()[:8])
    assert download_fid_inception(source.as_uri(), allow_download=True) == cache / FILE_NAMES[0]
    assert (cache / FILE_NAMES[0]).read_bytes() == b"weights"
    with pytest.raises(WeightsError, match="could not be had"):
        download_fid_inception((tmp_path / "gone.pth").as_uri(), allow_download=True)
