"""Settings of pretraining and a device in, ConfigErrors for what cannot be had out, before anything is trained."""

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
    """Raises ConfigError for bfloat16 on a GPU that only emulates it."""
    if config.precision != "bfloat16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"pretrain.precision=bfloat16, but {torch.cuda.get_device_name(device)} has no bfloat16 (NVIDIA has it "
            "since Ampere, compute capability 8.0). Set pretrain.precision=float32."
        )


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where torch.compile would find no compiler: after minutes, with a traceback."""
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else COMPILERS)):
        raise ConfigError(
            f"pretrain.compile=true needs a C++ compiler, and no {wanted or ', '.join(COMPILERS)} is on the path. "
            "Install one (Debian: apt install g++), or set pretrain.compile=false: the same training, slower."
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "pretrain.compile=true on a GPU needs the package triton, which this torch has not. Install a torch build "
            "for CUDA, or set pretrain.compile=false: the same training, slower."
        )


def held_out_images(config: PretrainConfig, images: int) -> int:
    """How many of so many images of the training split are not trained on."""
    return round(images * config.validation_fraction)


def check_data(config: PretrainConfig, data: Dataset, *, pixels: int | None, workers: int) -> None:
    """Raises ConfigError for what cannot be had with these images, `pixels` a side for the DNN, and so many workers."""
    pixels, size = pixels or min(data.image_shape[:2]), config.batch_size
    images, held_out = len(data.labels_N), held_out_images(config, len(data.labels_N))
    if config.shift >= pixels:
        raise ConfigError(
            f"pretrain.shift={config.shift} is not less than the {pixels} pixels of an image's side. Lower it."
        )
    if config.keep == "best" and held_out == 0:
        raise ConfigError(
            "pretrain.keep=best needs images to judge by, and "
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
            f"(pretrain.accumulation). Give at least {workers * config.accumulation}."
        )
    if (config.mixup or config.cutmix) and len(data.classes) < 2:
        raise ConfigError(
            f"pretrain.mixup={config.mixup} and pretrain.cutmix={config.cutmix} mix the labels of different classes; "
            f"{data.name} has {len(data.classes)}. Set both to 0."
        )
