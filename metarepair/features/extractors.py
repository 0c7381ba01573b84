"""Builds the networks that compute float32 features of uint8 images for Fréchet distances.

    inception            the published FID network, 2,048 features; only its distance is called FID
    timm:NAME            any timm model with given weights, e.g. timm:resnet18
    deployed             the input of the deployed DNN's last layer
    efficientnet_lite0   ImageNet's EfficientNet-Lite0, with weights from a package, 1,280 features

A spec gives that network or an error, never another network. Legend: B images, H W pixels, C channels,
D features. Source: paper Eq. 7 (features); Heusel et al. 2017 for `inception`.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarepair.features.folding import absorb_same_padding, fold_batch_norms
from metarepair.features.inception import FEATURES, fold_fid_inception, load_fid_inception
from metarepair.features.inception_weights import find_fid_inception, obtain_fid_inception
from metarepair.features.lite0 import lite0_file, lite0_key
from metarepair.models.fit import fit
from metarepair.models.preprocessing import resized
from metarepair.models.weights_file import WeightsFile, read_weights
from metarepair.models.wrappers import copied
from metarepair.weights import extractor_file
from tasks.errors import ConfigError, DataError, WeightsError, near_names, unknown_name
from tasks.storage.manifest import file_hash

SPECS = ("inception", "timm:NAME", "deployed", "efficientnet_lite0")
# A CPU is fastest with few images at a time. The activations of 4 images of 224 × 224 pixels stay in cache and in the
# allocator; those of 64 need new memory from the system (measured: 74 and 43 images/s per core).
PIXELS_PER_THREAD = 4 * 224 * 224

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


class FeatureExtractor(Protocol):
    """Computes features: uint8 [B, H, W, 3] to float32 [B, D]. The caller chooses B; it only changes the rounding."""

    @property
    def name(self) -> str:
        """The spec that it was built from; results record it."""

    @property
    def dim(self) -> int:
        """D, the number of features."""

    def __call__(self, images_BHWC_u8: Pixels) -> Features:
        """Features of a batch. Raises DataError for anything but uint8 colour images."""


def build_extractor(
    spec: str,
    *,
    weights: str | Path | None,
    deployed: nn.Module | None,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    input_size: int | None = None,
) -> FeatureExtractor:
    """Build the extractor that `spec` names, on `device`, in evaluation mode and float32.

    weights: a .safetensors or torch.save file; required for timm, otherwise None for the default place. deployed, mean,
    std, input_size: the deployed DNN, its normalisation of pixels in 0..1, and the size that it resizes images to
    (None: no resize); only used for the spec `deployed`. The DNN is copied, so that later repairs do not change the
    features. Raises ConfigError for an unknown spec or a missing input, WeightsError if the weights are missing or
    belong to another network.
    """
    file = weights_path(spec, weights)
    network: nn.Module
    if file is None:
        if deployed is None:
            raise ConfigError("features 'deployed' need the deployed DNN, but none was given")
        penultimate = _penultimate(copied(deployed))
        size = None if input_size is None else (input_size, input_size)
        network, dim = _Normalised(penultimate, size, mean, std), penultimate.dim
    elif spec == "inception":
        network, dim = fold_fid_inception(load_fid_inception(file)), FEATURES
    elif spec == "efficientnet_lite0":
        network, dim = _lite0(file), 1280
    else:
        network, dim = _timm(spec.removeprefix("timm:"), file)
    return _NetworkExtractor(spec, dim, network, device)


def weights_path(spec: str, weights: str | Path | None) -> Path | None:
    """The weights file of `spec`'s extractor: the given one, or the one in its default place; None for `deployed`.

    The FID Inception's file is downloaded if it is in no default place. Raises ConfigError for an unknown spec or
    model, WeightsError if the file does not exist.
    """
    check_extractor(spec, weights)
    given = None if weights is None else Path(weights).expanduser()
    if spec == "inception":
        return obtain_fid_inception(given)
    return lite0_file() if spec == "efficientnet_lite0" and given is None else given


def weights_digest(spec: str, weights: str | Path | None) -> str | None:
    """The digest of the file from `weights_path`, on which features depend; None for `deployed`."""
    file = weights_path(spec, weights)
    return None if file is None else file_hash(file)


def check_extractor(spec: str, weights: str | Path | None) -> None:
    """Check the spec and the weights file by name, before `build_extractor`; build and download nothing.

    Raises ConfigError for an unknown spec or model, and for weights given with `deployed`, which would not read them.
    Raises WeightsError for a given file that does not exist, and for timm:NAME without a file.
    """
    if spec.startswith("timm:"):
        _check_timm(spec.removeprefix("timm:"), weights)
    elif spec not in SPECS or spec == "timm:NAME":
        raise ConfigError(unknown_name("feature extractor", spec, SPECS))
    if weights is None:
        return
    if spec == "deployed":
        raise ConfigError(
            f"features.weights={weights} would not be read: the extractor 'deployed' is the deployed DNN, with the "
            "weights in model.weights. Leave features.weights out, or choose another features.extractor"
        )
    if spec == "inception":
        find_fid_inception(Path(weights).expanduser())
    else:
        extractor_file(spec, weights)


def distance_name(extractor_name: str) -> str:
    """The name of a Fréchet distance in these features: "FID" only for `inception`."""
    if extractor_name == "inception":
        return "FID"
    features = {"efficientnet_lite0": "EfficientNet-Lite0", "deployed": "the deployed DNN's"}
    return f"Fréchet distance in {features.get(extractor_name, extractor_name)} features"


class _NetworkExtractor:
    """A FeatureExtractor made of a network from uint8 [B, 3, H, W] to [B, D]."""

    def __init__(self, name: str, dim: int, network: nn.Module, device: torch.device) -> None:
        self.name, self.dim, self._device = name, dim, device
        self._network = network.to(device=device, dtype=torch.float32).requires_grad_(False).eval()

    @torch.inference_mode()
    def __call__(self, images_BHWC_u8: Pixels) -> Features:
        shape = images_BHWC_u8.shape
        if images_BHWC_u8.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise DataError(
                f"features need uint8 images [B, H, W, 3]; these are {images_BHWC_u8.dtype} {list(shape)}"
            )
        # Copied, since a memory map may be read-only. The permuted layout is torch's channels_last.
        images_BCHW_u8 = torch.from_numpy(images_BHWC_u8.copy()).to(self._device).permute(0, 3, 1, 2)
        chunk = self._chunk(*shape[1:3])
        parts = [images_BCHW_u8[start : start + chunk] for start in range(0, shape[0], chunk)]
        features_BD = torch.cat([self._network(part_BCHW_u8) for part_BCHW_u8 in parts])
        if features_BD.shape != (shape[0], self.dim):
            raise ConfigError(
                f"{self.name} gave features of shape {list(features_BD.shape)} instead of [{shape[0]}, {self.dim}]; "
                "its penultimate layer is not one vector per image. Choose another extractor"
            )
        features: Features = features_BD.float().cpu().numpy()
        return features

    def _chunk(self, height: int, width: int) -> int:
        """The number of images in one forward pass; on a GPU, all that the caller gives."""
        if self._device.type != "cpu":
            return sys.maxsize
        height, width = getattr(self._network, "size", None) or (height, width)
        return max(PIXELS_PER_THREAD * torch.get_num_threads() // (height * width), 1)


class _Normalised(nn.Module):
    """Resizes uint8 [B, 3, H, W] bilinearly to `size` (None: not at all), applies (x/255 − mean)/std and a network."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, size: tuple[int, int] | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if size is not None:
            absorb_same_padding(network.eval(), torch.zeros(1, 3, *size))
        # Channels last is the faster layout for convolutions, on CPUs and on GPUs.
        self.network = network.to(memory_format=torch.channels_last)
        self.size = size
        self.register_buffer("mean", 255 * torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(list(std)).view(-1, 1, 1))

    def forward(self, images_BCHW_u8: Tensor) -> Tensor:
        x_BCHW = images_BCHW_u8.float()
        if self.size is not None:
            x_BCHW = resized(x_BCHW, self.size)
        features_BD: Tensor = self.network(x_BCHW.sub_(self.mean).div_(self.std))
        return features_BD


class _TimmPenultimate(nn.Module):
    """The input of a timm-style model's classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        fold_batch_norms(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = self.model.forward_head(self.model.forward_features(x_BCHW), pre_logits=True)
        return features_BD


class _LinearInput(nn.Module):
    """The input of any other model's last `nn.Linear`, recorded by a hook."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise ConfigError(
                "the deployed DNN has neither timm's forward_features and forward_head nor an nn.Linear, so "
                "its features cannot be found; choose inception, efficientnet_lite0 or timm:NAME"
            )
        self.model = model
        fold_batch_norms(model)
        self.dim = linears[-1].in_features
        self._caught: list[Tensor] = []
        linears[-1].register_forward_pre_hook(lambda _, inputs: self._caught.append(inputs[0]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self._caught.clear()
        self.model(x_BCHW)
        if len(self._caught) != 1:
            raise ConfigError(
                f"the deployed DNN's last nn.Linear ran {len(self._caught)} times in one batch, so its input is not "
                "one feature vector per image; choose inception, efficientnet_lite0 or timm:NAME"
            )
        return self._caught.pop()


def _penultimate(model: nn.Module) -> _TimmPenultimate | _LinearInput:
    head = getattr(model, "forward_head", None)
    if hasattr(model, "forward_features") and head and "pre_logits" in inspect.signature(head).parameters:
        return _TimmPenultimate(model)
    return _LinearInput(model)


def _check_timm(name: str, weights: str | Path | None) -> None:
    if name not in timm.list_models():
        hint = near_names(name, timm.list_models()) or "."
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}{hint} timm.list_models() names all")
    if weights is None:
        raise WeightsError(
            f"timm:{name} needs a weights file (.safetensors, or torch.save of a state dict) in features.weights; "
            "none was given, and none is downloaded"
        )


def _timm(name: str, weights: Path) -> tuple[nn.Module, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a classifier without classes, which is not used
        model = timm.create_model(name, num_classes=0)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    missing = [key for key in ("input_size", "mean", "std", "classifier") if key not in cfg]
    if missing:
        raise ConfigError(
            f"timm:{name} states no {missing[0]} (timm's pretrained_cfg), and features need it. Deploy it and set "
            "features.extractor to deployed, or name one of timm's own models."
        )
    classifiers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else list(cfg["classifier"] or ())
    _load_body(model, read_weights(weights), f"timm's {name}", classifier=tuple(f"{c}." for c in classifiers))
    network = _TimmPenultimate(model)
    return _Normalised(network, tuple(cfg["input_size"][1:]), cfg["mean"], cfg["std"]), network.dim


def _lite0(weights: Path) -> nn.Module:
    """TensorFlow's EfficientNet-Lite0 (Apache-2.0): 224 pixels, (x − 127)/128, 1,280 features."""
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    file = read_weights(weights)
    file = replace(file, tensors={lite0_key(key): tensor for key, tensor in file.tensors.items()})
    _load_body(model, file, "EfficientNet-Lite0", classifier=("classifier.",))
    return _Normalised(_TimmPenultimate(model), (224, 224), [127 / 255] * 3, [128 / 255] * 3)


def _load_body(model: nn.Module, file: WeightsFile, network: str, *, classifier: tuple[str, ...]) -> None:
    """Load all tensors but the classifier's, which features do not need and which may have other classes."""
    remedy = (
        "Set features.extractor to the network that the file belongs to, or features.weights to its file."
    )
    model.load_state_dict(fit(model, file, network, ignored=classifier, remedy=remedy).tensors)
