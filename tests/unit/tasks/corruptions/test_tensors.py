"""Corruptions of tensors against those of arrays: within a grey level, nearly everywhere equal."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from tasks.corruptions import CORRUPTIONS, corrupt
from tasks.corruptions.tensors import ON_DEVICE, corrupt_tensor
from tasks.errors import ConfigError, DataError

STAYING = sorted(ON_DEVICE)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LOOKED_UP = ("gaussian_noise", "shot_noise", "impulse_noise", "brightness")
ELSEWHERE = ("spatter", "pixelate", "jpeg_compression")
SIZES = {"cifar": (32, 32), "tinyimagenet": (64, 49), "imagenet": (40, 101)}


def scenes(count, height, width, channels=3):
    rng = np.random.default_rng(4)
    coarse = rng.uniform(0, 255, size=(count, 5, 6, channels)).astype(np.float32)
    grown = [cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse]
    grown = np.stack(grown).reshape(count, height, width, channels)
    images = np.clip(grown + rng.normal(0, 6, size=grown.shape), 0, 255).astype(np.uint8)
    images[0, :4, :4] = 0
    images[0, 4:8, :4] = 255
    return images


def both(images, name, *, device="cpu", severity=3, table="cifar"):
    """By the array code and by the tensor code, as int16."""
    options = {"corruption": name, "severity": severity, "seed": 5, "table": table}
    ids = np.arange(len(images)) + 10
    expected = corrupt(images, image_ids_B=ids, **options)
    got = corrupt_tensor(torch.from_numpy(images).to(device), image_ids_B=torch.from_numpy(ids), **options)
    assert got.device.type == device
    assert got.dtype == torch.uint8
    return got.cpu().numpy().astype(np.int16), expected.astype(np.int16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("table", SIZES)
@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_tensor_comes_out_as_the_array_within_a_grey_level(name, severity, table, device):
    images = scenes(5, *SIZES[table])
    got, expected = both(images, name, device=device, severity=severity, table=table)
    difference = np.abs(got - expected)
    assert difference.max() <= (0 if name in LOOKED_UP + ELSEWHERE else 1)
    assert (difference > 0).mean() < 0.005
    assert not np.array_equal(got, images)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_and_strided_tensors_work_as_well(name, device):
    grey = scenes(3, 33, 40, channels=1)
    for images in (grey, grey[..., 0]):
        got, expected = both(images, name, device=device)
        assert got.shape == images.shape
        assert np.abs(got - expected).max() <= 1
    images = scenes(3, 33, 40)
    options = {"corruption": name, "severity": 3, "seed": 0}
    planes = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    got = corrupt_tensor(planes, image_ids_B=[0, 1, 2], **options)
    expected = corrupt(images, image_ids_B=[0, 1, 2], **options)
    assert np.abs(got.cpu().numpy().astype(int) - expected).max() <= 1
    assert torch.equal(planes.cpu(), torch.from_numpy(images))  # the input is left alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAYING)
def test_neither_chunks_nor_the_batch_show(name, device, monkeypatch):
    images = scenes(5, 32, 32)
    whole, _ = both(images, name, device=device)
    monkeypatch.setattr("tasks.corruptions.tensors.CHUNK_VALUES", 2 * 32 * 32 * 3)
    chunked, _ = both(images, name, device=device)
    alone, _ = both(images[:1], name, device=device)
    for parts, wanted in ((chunked, whole), (alone, whole[:1])):
        assert np.abs(parts - wanted).max() <= 1
        assert (parts != wanted).mean() < 0.005


@pytest.fixture
def low_precision():
    """What a training loop may have set elsewhere in the process."""
    precision = torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAYING)
def test_a_low_precision_set_elsewhere_does_not_show(name, device, low_precision):
    images = scenes(3, 32, 32)
    with torch.autocast(device, torch.bfloat16), torch.inference_mode():
        got, expected = both(images, name, device=device)
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 0.005


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAYING)
def test_flat_and_black_images_lose_no_level_to_rounding(name, device):
    flat = np.broadcast_to(np.arange(0, 256, 15, dtype=np.uint8)[:, None, None, None], (18, 32, 32, 3))
    got, expected = both(flat.copy(), name, device=device)
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 0.005


@pytest.mark.parametrize(
    ("name", "height", "width"), [("elastic_transform", 258, 256), ("fog", 8, 1100), ("zoom_blur", 258, 256)]
)
def test_large_and_oblong_tensors_come_out_as_arrays(name, height, width):
    """Where the arrays go by coarser grids, windows or zooms, and so do tensors."""
    got, expected = both(scenes(1, height, width), name, severity=1, table="imagenet")
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 0.005


def test_an_empty_batch_gives_an_empty_batch():
    for name in CORRUPTIONS:
        empty = torch.zeros((0, 32, 32, 3), dtype=torch.uint8)
        got = corrupt_tensor(empty, image_ids_B=[], corruption=name, severity=1, seed=0)
        assert got.shape == (0, 32, 32, 3)
        assert got.dtype == torch.uint8
        with pytest.raises(ConfigError, match="outside 1"):
            corrupt_tensor(empty, image_ids_B=[], corruption=name, severity=0, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STAYING)
def test_no_pixel_leaves_the_device_and_no_step_mixes_devices(name, channels):
    """A meta tensor has no values: reading one, or computing with the CPU's tensors, is an error."""
    for severity in (1, 5):
        images = torch.empty((3, 33, 40, channels), dtype=torch.uint8, device="meta")
        got = corrupt_tensor(images, image_ids_B=[0, 1, 2], corruption=name, severity=severity, seed=0)
        assert (got.device.type, got.dtype, got.shape) == ("meta", torch.uint8, images.shape)


def test_all_but_three_stay_on_the_device():
    assert set(CORRUPTIONS) - set(ON_DEVICE) == set(ELSEWHERE)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (
            torch.zeros((2, 32, 32, 3)),
            {},
            DataError,
            r"images are torch.float32; .*round\(\)\.to\(torch\.uint8\)",
        ),
        (
            np.zeros((2, 32, 32, 3), np.uint8),
            {},
            DataError,
            "images are ndarray; .*torch.from_numpy makes one",
        ),
        (torch.zeros((2, 3, 32, 32), dtype=torch.uint8), {}, DataError, r"shape \[2, 3, 32, 32\]"),
        (torch.zeros((2, 7, 32, 3), dtype=torch.uint8), {}, DataError, "at least 8x8"),
        (torch.zeros((3, 32, 32, 3), dtype=torch.uint8), {}, DataError, "one id per image"),
        (
            torch.zeros((2, 32, 32, 3), dtype=torch.uint8).to_sparse(),
            {},
            DataError,
            r"torch.sparse_coo.*to_dense",
        ),
        (torch.zeros((2, 32, 32, 3), dtype=torch.uint8), {"severity": 6}, ConfigError, r"outside 1\.\.5"),
        (torch.zeros((2, 32, 32, 3), dtype=torch.uint8), {"corruption": "fogg"}, ConfigError, "did you mean"),
        (torch.zeros((2, 32, 32, 3), dtype=torch.uint8), {"table": "cifr"}, ConfigError, "did you mean"),
        (torch.zeros((2, 32, 32, 3), dtype=torch.uint8), {"seed": 0.5}, ConfigError, "no whole number"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, options, error, message):
    options = {"corruption": "fog", "severity": 1, "seed": 0} | options
    with pytest.raises(error, match=message):
        corrupt_tensor(images, image_ids_B=[0, 1], **options)
