"""A weights file in, its tensors by name out: read without running the file's code, held against a network's."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tasks.errors import WeightsError


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or torch.save file, on the CPU; runs no code of the file's.

    Raises WeightsError when the file is missing, damaged, or holds anything but named tensors.
    """
    try:
        state = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read as weights: {error.strerror or error}") from error
    except (EOFError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{file} cannot be read as weights: {_reason(file, error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{file} holds no state dict (tensors by name): save `model.state_dict()`")
    return dict(state)


def _load_pickle(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on foreign pickles, which are refused in our own words
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(file: Path, error: Exception) -> str:
    with file.open("rb") as stream:
        start = stream.read(64).lstrip()
    if start.startswith(b"<"):
        return "it is a web page or other text, as a failed download leaves one; download the file itself"
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is no torch.save file of tensors alone, and nothing else is unpickled, because that can run code; "
            "save `model.state_dict()` by torch.save or safetensors, and give that file"
        )
    return (
        f"it is damaged, or in no format of weights ({type(error).__name__}); copy it again, or give another"
    )


def check_state_dict(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, file: Path, network: str
) -> None:
    """WeightsError that names what is missing, surplus or of another shape, unless `state` fits exactly."""
    wrong = {
        "missing": [k for k in expected if k not in state],
        "not in the network": [k for k in state if k not in expected],
        "of another shape": [k for k in expected if k in state and state[k].shape != expected[k].shape],
    }
    told = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in wrong.items() if names]
    if told:
        raise WeightsError(f"{file} is not for {network}: of its tensors {'; '.join(told)}")
