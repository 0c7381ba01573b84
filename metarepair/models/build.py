"""A timm name and a safetensors file in, a deployed DNN that takes uint8 images out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import metarepair.models.resnet8  # noqa: F401  registers resnet8_cifar with timm
from metarepair.weights import SHIPPED
from tasks.datasets import DatasetInfo
from tasks.errors import ConfigError, WeightsError, near_names
from tasks.records import Pixels
from tasks.storage import Place, local, writing

# B images, H W C pixels, K classes


@dataclass(frozen=True, kw_only=True)
class DeployedModel:
    """The deployed DNN F_θ (paper Sec. 3) with the preprocessing that belongs to it.

    `module` maps normalised images [B, C, H, W] to logits [B, K]; `mean` and `std` are of pixels in [0, 1].
    """

    name: str
    module: nn.Module
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def normalise(self, images_BHWC_u8: Pixels) -> Tensor:
        """uint8 [B, H, W, C] to the module's normalised input [B, C, H, W], channels last in memory."""
        x_BHWC = torch.from_numpy(images_BHWC_u8.copy()).to(self.device).to(self.dtype)
        scale = 255.0 * torch.tensor(self.std, dtype=self.dtype, device=self.device)
        shift = torch.tensor(self.mean, dtype=self.dtype, device=self.device) / torch.tensor(
            self.std, dtype=self.dtype, device=self.device
        )
        return (x_BHWC / scale - shift).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def logits(self, images_BHWC_u8: Pixels, *, batch_size: int = 500) -> Tensor:
        """Logits [B, K] on the CPU, in evaluation mode, in batches of `batch_size`."""
        self.module.eval()
        parts = [
            self.module(self.normalise(images_BHWC_u8[start : start + batch_size])).float().cpu()
            for start in range(0, len(images_BHWC_u8), batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.num_classes)


def build_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised timm model in channels-last layout. ConfigError (near names) for an unknown one."""
    if name not in timm.list_models():
        raise ConfigError(
            f"no model {name!r} in timm {timm.__version__}{near_names(name, timm.list_models()) or '.'} "
            "`timm.list_models()` names all; the project adds resnet8_cifar."
        )
    module: nn.Module = timm.create_model(name, num_classes=num_classes)
    return module.to(memory_format=torch.channels_last)


def resolve_weights(weights: str) -> Path:
    """The path of `weights`: `shipped:NAME` is a file of this package, anything else a path."""
    if weights.startswith("shipped:"):
        path = SHIPPED / f"{weights.removeprefix('shipped:')}.safetensors"
        if not path.is_file():
            there = ", ".join(sorted(f"shipped:{p.stem}" for p in SHIPPED.glob("*.safetensors")))
            raise WeightsError(f"model.weights={weights!r} is not shipped. There are: {there or 'none'}")
        return path
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"model.weights={weights!r}: no such file. Give a .safetensors file, or shipped:resnet8_cifar10."
        )
    return path


def load_deployed(
    name: str, weights: str, info: DatasetInfo, *, device: torch.device | None = None
) -> DeployedModel:
    """The DNN `name` with `weights`, in evaluation mode.

    Raises WeightsError when the file is not safetensors, or its tensors are another DNN's.
    """
    module = build_model(name, len(info.classes))
    load_weights(module, resolve_weights(weights), name)
    module.to(device or torch.device("cpu")).eval()
    return DeployedModel(
        name=name, module=module, num_classes=len(info.classes), mean=info.mean, std=info.std
    )


def load_weights(module: nn.Module, path: Path, name: str) -> None:
    """Copies the tensors of a safetensors file into `module`; all must fit by name and shape."""
    tensors = read_tensors(path)
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    shapes = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    if missing or unexpected or shapes:
        first = (missing or unexpected or shapes)[0]
        raise WeightsError(
            f"{path} holds the weights of another DNN than {name} with these classes: {len(missing)} tensors are "
            f"missing, {len(unexpected)} unexpected, {len(shapes)} of another shape (first: {first}). "
            "Set model.name to the DNN that the weights belong to, or model.weights to its file."
        )
    module.load_state_dict(tensors)


def read_tensors(path: Place) -> dict[str, Tensor]:
    """All tensors of a safetensors file. A pickle or a truncated file is a WeightsError that says so."""
    try:
        with safe_open(local(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
    except (SafetensorError, OSError) as error:
        head = path.read_bytes()[:2] if path.is_file() else b""
        if head == b"PK" or (head[:1] == b"\x80" and head[1:] <= b"\x05"):  # a zip, or protocols 2 to 5
            raise WeightsError(
                f"{path} is a pickle (torch.save), which can run code when it is read; only safetensors is taken. "
                "Convert it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')."
            ) from error
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Copy it again.") from error


def save_weights(path: Place, state: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Writes tensors as safetensors; the file appears complete or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # One entry: safetensors writes several in a random order, and equal weights should be equal files.
    with writing(path) as part:
        save_file(tensors, part, metadata={"metarepair": json.dumps(dict(metadata), sort_keys=True)})


def state_hash(state: Mapping[str, Tensor]) -> str:
    """A digest of names and bytes: equal for bit-equal weights."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
