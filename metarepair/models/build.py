"""Build the deployed DNN, which takes uint8 images, from a timm name or a factory, and from a weights file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import metarepair.models.convnext_cifar  # registers convnext_cifar with timm
import metarepair.models.resnet8  # noqa: F401  registers resnet8_cifar with timm
from metarepair.models.classes import check_class_names, stated_classes
from metarepair.models.factory import build_from_factory, is_import_path
from metarepair.models.fit import load_weights
from metarepair.models.hub import build_from_hub, check_count, origin_note
from metarepair.models.preprocessing import Colour, Normalisation, mean_and_std, resized
from metarepair.models.stems import Stem, use_small_stem  # with van_b0 to van_b6, which register themselves
from metarepair.models.weights_file import read_weights
from metarepair.weights import resolve_weights
from metarepair.weights.hub import EXAMPLE, TIMM, is_hub
from metarepair.weights.stated import stated_of
from tasks.datasets import DatasetInfo
from tasks.errors import ConfigError, near_names
from tasks.records import Pixels
from tasks.storage.paths import Place, writing

# B images, H W C pixels, K classes

LANES = 16  # float32 numbers in the widest vector register of a CPU


@dataclass(frozen=True, kw_only=True)
class DeployedModel:
    """The deployed DNN F_θ (paper Sec. 3) with its preprocessing.

    `module` maps normalised images [B, C, H, W] to logits [B, K]; `mean` and `std` are of pixels in [0, 1]. If
    `input_size` is set, images are first resized to that many pixels a side. `notes` describe the weights file.
    """

    name: str
    module: nn.Module
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def preprocessing(self) -> dict[str, Any]:
        """`mean`, `std` and `input_size`, as result.json, cards and exports state them."""
        return {"mean": list(self.mean), "std": list(self.std), "input_size": self.input_size}

    @cached_property
    def plain_layout(self) -> bool:
        """Whether images are not laid out channels last, as `unsafe_layers` must not get them."""
        return bool(unsafe_layers(self.module))

    def normalise(self, images_BHWC_u8: Pixels | Tensor) -> Tensor:
        """Return uint8 images [B, H, W, C] as the module's normalised input [B, C, H, W].

        It is channels last in memory, unless `plain_layout`.
        """
        if not isinstance(images_BHWC_u8, Tensor):
            images_BHWC_u8 = torch.from_numpy(images_BHWC_u8.copy())
        x_BHWC = images_BHWC_u8.to(self.device).to(self.dtype)
        if self.input_size is not None:
            size = (self.input_size, self.input_size)
            x_BHWC = resized(x_BHWC.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        scale = 255.0 * torch.tensor(self.std, dtype=self.dtype, device=self.device)
        shift = torch.tensor(self.mean, dtype=self.dtype, device=self.device) / torch.tensor(
            self.std, dtype=self.dtype, device=self.device
        )
        x_BCHW = (x_BHWC / scale - shift).permute(0, 3, 1, 2)
        return x_BCHW.contiguous() if self.plain_layout else x_BCHW

    @torch.inference_mode()
    def logits(self, images_BHWC_u8: Pixels, *, batch_size: int = 500) -> Tensor:
        """Return logits [B, K] on the CPU, computed in evaluation mode in batches of `batch_size`."""
        self.module.eval()
        parts = [
            self.module(self.normalise(images_BHWC_u8[start : start + batch_size])).float().cpu()
            for start in range(0, len(images_BHWC_u8), batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.num_classes)


def unsafe_layers(module: nn.Module) -> list[str]:
    """Return the names of the layers whose backward pass must not get channels-last images on a CPU.

    They are 1 × 1 convolutions with a stride and fewer input channels than a vector register holds. On processors with
    AVX2 and no AVX-512, oneDNN 3.13 writes past its buffer there, or gives wrong gradients.
    Source: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < LANES
    ]


def _laid_out(module: nn.Module) -> nn.Module:
    """The module with its weights channels last, where that is safe."""
    return module if unsafe_layers(module) else module.to(memory_format=torch.channels_last)


def build_model(name: str, num_classes: int, *, stem: Stem = "imagenet") -> nn.Module:
    """Build a freshly initialised DNN, in channels-last layout where that is safe.

    name: NAME or timm:NAME for a model of timm, a name on a hub, or module:FACTORY. Raises ConfigError for an unknown
    name (listing near names), and for stem "cifar" if the model has no known stem for small images; WeightsError as
    `build_from_hub` does.
    """
    if is_import_path(name) or is_hub(name):
        own = (build_from_hub if is_hub(name) else build_from_factory)(name, num_classes)
        if stem == "cifar":
            use_small_stem(own, name)
        return _laid_out(own)
    name = name.removeprefix(TIMM)
    if name not in timm.list_models():
        raise ConfigError(
            f"no model {name!r} in timm {timm.__version__}{near_names(name, timm.list_models()) or '.'} "
            "`timm.list_models()` lists all; the project adds resnet8_cifar, convnext_cifar and van_b0 to van_b6. "
            f"For a DNN of your own, give module:FACTORY; for one of a hub, its name as {EXAMPLE}."
        )
    module: nn.Module = timm.create_model(name, num_classes=num_classes)
    if stem == "cifar":
        use_small_stem(module, name)
    return _laid_out(module)


def load_deployed(
    name: str,
    weights: str,
    info: DatasetInfo,
    *,
    stem: Stem = "imagenet",
    input_size: int | None = None,
    normalisation: Normalisation = "dataset",
    mean: Colour | None = None,
    std: Colour | None = None,
    entry: str | None = None,
    device: torch.device | None = None,
) -> DeployedModel:
    """Load the DNN `name` with `weights`, in evaluation mode.

    entry: the entry of the file that holds the weights, if it has several. mean, std: replace those of
    `normalisation`. Raises WeightsError if the file is neither safetensors nor a torch.save file of plain tensors, or
    if its tensors belong to another DNN, or if a hub's are missing.
    """
    module, stated = build_model(name, len(info.classes), stem=stem), stated_of(name, weights)
    check_count(weights, stated, len(info.classes))
    file = read_weights(resolve_weights(weights), entry=entry)
    notes = load_weights(module, file, name)
    names = file.classes or (stated and stated.classes) or stated_classes(module)
    if names is not None:
        notes += check_class_names(names, info.classes, where=file.path.name if file.classes else name)
    module.to(device or torch.device("cpu")).eval()
    usual_mean, usual_std = (mean, std) if mean and std else mean_and_std(module, name, info, normalisation)
    mean, std = mean or usual_mean, std or usual_std
    if stated is not None:
        notes += (origin_note(name, file.path, stated, mean=mean, std=std, input_size=input_size),)
    return DeployedModel(
        name=name,
        module=module,
        num_classes=len(info.classes),
        mean=mean,
        std=std,
        input_size=input_size,
        notes=notes,
    )


def read_tensors(path: Place) -> dict[str, Tensor]:
    """Return all tensors of a file that `save_weights` wrote. Raises WeightsError as `read_weights` does."""
    return read_weights(path).tensors


def save_weights(path: Place, state: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors as safetensors; the file appears complete or not at all."""
    # Copies, since safetensors refuses two names for one tensor, and a DNN with shared weights has them.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    # A single entry: safetensors writes several in random order, and equal weights should make equal files.
    with writing(path) as part:
        save_file(tensors, part, metadata={"metarepair": json.dumps(dict(metadata), sort_keys=True)})


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return a digest of names and bytes, which is equal for bit-equal weights."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
