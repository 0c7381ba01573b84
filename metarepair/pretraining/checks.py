"""Check that the settings of pretraining suit the data set and the device, before anything is trained."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from metarepair.config.pretraining import PretrainConfig
from tasks.datasets import Dataset
from tasks.errors import ConfigError

COMPILERS = ("g++", "clang++", "c++")


def check_precision(config: PretrainConfig, device: torch.device) -> None:
    """Raise ConfigError for bfloat16 on a GPU that only emulates it."""
    if config.precision != "bfloat16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"pretrain.precision=bfloat16, but {torch.cuda.get_device_name(device)} has no bfloat16 (NVIDIA GPUs have "
            "it since Ampere, compute capability 8.0). Set pretrain.precision=float32."
        )


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError if torch.compile would find no compiler; it would fail only after minutes, with a traceback."""
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else COMPILERS)):
        raise ConfigError(
            f"pretrain.compile=true needs a C++ compiler, and no {wanted or ', '.join(COMPILERS)} is on the path. "
            "Install one (Debian: apt install g++), or set pretrain.compile=false: the same training, slower."
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "pretrain.compile=true on a GPU needs the package triton, which is not installed. Install a torch build "
            "for CUDA, or set pretrain.compile=false: the same training, slower."
        )


def held_out_images(config: PretrainConfig, images: int) -> int:
    """Return the number of images, of `images` in the training split, that are held out for validation."""
    return round(images * config.validation_fraction)


def check_data(config: PretrainConfig, data: Dataset, *, pixels: int | None, workers: int) -> None:
    """Raise ConfigError for a setting that does not suit the data set or the number of workers.

    pixels: side of the images that the DNN gets, None for the data set's own size.
    """
    pixels, size = pixels or min(data.image_shape[:2]), config.batch_size
    images, held_out = len(data.labels_N), held_out_images(config, len(data.labels_N))
    if config.shift >= pixels:
        raise ConfigError(
            f"pretrain.shift={config.shift} is not less than the {pixels} pixels of an image's side. Lower it."
        )
    if config.keep == "best" and held_out == 0:
        raise ConfigError(
            "pretrain.keep=best needs validation images, and "
            f"pretrain.validation_fraction={config.validation_fraction} of {images} images is none. Raise it, or set "
            "pretrain.keep=last."
        )
    if size > images - held_out:
        raise ConfigError(
            f"pretrain.batch_size={size} is more than the {images - held_out} images to train on. Lower it."
        )
    if size < workers * config.accumulation:
        raise ConfigError(
            f"pretrain.batch_size={size} cannot be shared by {workers} workers in {config.accumulation} parts each "
            f"(pretrain.accumulation). Set it to at least {workers * config.accumulation}."
        )
    if (config.mixup or config.cutmix) and len(data.classes) < 2:
        raise ConfigError(
            f"pretrain.mixup={config.mixup} and pretrain.cutmix={config.cutmix} mix the labels of different classes; "
            f"{data.name} has {len(data.classes)}. Set both to 0."
        )
