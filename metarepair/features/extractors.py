"""uint8 images in, float32 features out: the networks whose features a Fréchet distance compares.

    inception            the published FID network, 2,048 features: only its distance is called FID
    timm:NAME            any timm model with the weights given, e.g. timm:resnet18
    deployed             what the deployed DNN hands its last layer
    efficientnet_lite0   ImageNet's EfficientNet-Lite0 from a package that carries its weights, 1,280 features

A spec gives that network or an error, never another one. Legend: B images, H W pixels, C channels,
D features. Source: paper Eq. 7 (features), with Heusel et al. 2017 for the first.
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
# A CPU is fastest with few images at a time: the activations of four of 224 × 224 pixels are reused from
# cache and the allocator, those of 64 are fetched from the system anew (74 and 43 images/s a core, measured).
PIXELS_PER_THREAD = 4 * 224 * 224

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


class FeatureExtractor(Protocol):
    """uint8 [B, H, W, 3] to float32 [B, D]; the caller chooses B, which changes features by rounding only."""

    @property
    def name(self) -> str:
        """The spec that it was built from; results state it."""

    @property
    def dim(self) -> int:
        """D, the number of features."""

    def __call__(self, images_BHWC_u8: Pixels) -> Features:
        """Features of a batch; DataError for anything but uint8 colour images."""


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
    """The extractor that `spec` names, on `device`, in evaluation mode and float32.

    weights: a .safetensors or torch.save file; required for timm, else None for the usual place. deployed,
    mean, std, input_size: the deployed DNN, its normalisation of pixels in 0..1 and the size that it resizes
    images to (None: as they are), for `deployed` alone; the DNN is copied, so that later repairs do not change
    the features. Raises ConfigError for an unknown spec or one that lacks what it needs, WeightsError for
    weights that are missing or another network's.
    """
    file = weights_path(spec, weights)
    network: nn.Module
    if file is None:
        if deployed is None:
            raise ConfigError("features 'deployed' need the deployed DNN, and none was given")
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
    """The file whose tensors `spec`'s extractor takes, given or found in its usual place; None for `deployed`.

    The FID Inception's is downloaded where it is in no usual place. ConfigError for an unknown spec or model,
    WeightsError for a file that is not there.
    """
    check_extractor(spec, weights)
    given = None if weights is None else Path(weights).expanduser()
    if spec == "inception":
        return obtain_fid_inception(given)
    return lite0_file() if spec == "efficientnet_lite0" and given is None else given


def weights_digest(spec: str, weights: str | Path | None) -> str | None:
    """The digest of the file that `weights_path` names, on which features depend; None for `deployed`."""
    file = weights_path(spec, weights)
    return None if file is None else file_hash(file)


def check_extractor(spec: str, weights: str | Path | None) -> None:
    """Refuses what `build_extractor` could not build, as far as names tell; nothing is built or downloaded.

    ConfigError for an unknown spec or model, and for weights that `deployed` would not read; WeightsError for
    a file that is named and is not there, and for timm:NAME without one.
    """
    if spec.startswith("timm:"):
        _check_timm(spec.removeprefix("timm:"), weights)
    elif spec not in SPECS or spec == "timm:NAME":
        raise ConfigError(unknown_name("feature extractor", spec, SPECS))
    if weights is None:
        return
    if spec == "deployed":
        raise ConfigError(
            f"features.weights={weights} would not be read: the extractor 'deployed' is the deployed DNN, whose "
            "weights are model.weights. Leave features.weights out, or choose another features.extractor"
        )
    if spec == "inception":
        find_fid_inception(Path(weights).expanduser())
    else:
        extractor_file(spec, weights)


def distance_name(extractor_name: str) -> str:
    """What a Fréchet distance in these features is called: "FID" for `inception` and nothing else."""
    if extractor_name == "inception":
        return "FID"
    features = {"efficientnet_lite0": "EfficientNet-Lite0", "deployed": "the deployed DNN's"}
    return f"Fréchet distance in {features.get(extractor_name, extractor_name)} features"


class _NetworkExtractor:
    """A network from uint8 [B, 3, H, W] to [B, D], as a FeatureExtractor."""

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
        # A copy, for a memory map may be read-only; its layout is torch's channels_last.
        images_BCHW_u8 = torch.from_numpy(images_BHWC_u8.copy()).to(self._device).permute(0, 3, 1, 2)
        chunk = self._chunk(*shape[1:3])
        parts = [images_BCHW_u8[start : start + chunk] for start in range(0, shape[0], chunk)]
        features_BD = torch.cat([self._network(part_BCHW_u8) for part_BCHW_u8 in parts])
        if features_BD.shape != (shape[0], self.dim):
            raise ConfigError(
                f"{self.name} gave {list(features_BD.shape)} where [{shape[0]}, {self.dim}] features were "
                "expected; its penultimate layer is not one vector per image: choose another extractor"
            )
        features: Features = features_BD.float().cpu().numpy()
        return features

    def _chunk(self, height: int, width: int) -> int:
        """Images at a time: on a GPU as many as the caller gives."""
        if self._device.type != "cpu":
            return sys.maxsize
        height, width = getattr(self._network, "size", None) or (height, width)
        return max(PIXELS_PER_THREAD * torch.get_num_threads() // (height * width), 1)


class _Normalised(nn.Module):
    """uint8 [B, 3, H, W]: bilinear resize to `size` (None: none), (x/255 − mean)/std, then a network."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, size: tuple[int, int] | None, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if size is not None:
            absorb_same_padding(network.eval(), torch.zeros(1, 3, *size))
        # Channels last is the faster layout for convolutions on CPUs as on GPUs.
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
    """What a timm-style model hands its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        fold_batch_norms(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = self.model.forward_head(self.model.forward_features(x_BCHW), pre_logits=True)
        return features_BD


class _LinearInput(nn.Module):
    """What any other classifier hands its last `nn.Linear`, caught on the way in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise ConfigError(
                "the deployed DNN has neither timm's forward_features and forward_head nor an nn.Linear, so "
                "its features are not known; choose inception, efficientnet_lite0 or timm:NAME"
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
                f"the deployed DNN's last nn.Linear ran {len(self._caught)} times a batch; its input is no "
                "feature then: choose inception, efficientnet_lite0 or timm:NAME"
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
            f"timm:{name} needs a weights file (.safetensors, or torch.save of a state dict), in features.weights; "
            "none was given and none is downloaded"
        )


def _timm(name: str, weights: Path) -> tuple[nn.Module, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a classifier without classes: it is not used
        model = timm.create_model(name, num_classes=0)
    cfg: Mapping[str, Any] | None = getattr(model, "pretrained_cfg", None)
    if cfg is None:
        raise ConfigError(
            f"timm:{name} states no pretrained_cfg, so its input size and normalisation are not known. Deploy it and "
            "set features.extractor to deployed, or name a model of timm's own."
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
    """Loads all but the classifier, which features do not need and whose classes may be others."""
    remedy = (
        "Set features.extractor to the network that the file belongs to, or features.weights to its file."
    )
    model.load_state_dict(fit(model, file, network, ignored=classifier, remedy=remedy).tensors)
