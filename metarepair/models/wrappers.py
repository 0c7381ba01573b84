"""The classifier inside what runs or averages it, and copies of it; what cannot be repaired is refused."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from tasks.errors import ConfigError

WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile.

    These only say where a module runs, or hold it: a repair works on the module itself, whose names have no prefix.
    Raises ConfigError for TorchScript, whose weights cannot be put in from outside.
    """
    while isinstance(module, WRAPPERS) or hasattr(module, "_orig_mod"):
        inner = module.module if isinstance(module, WRAPPERS) else module._orig_mod
        assert isinstance(inner, nn.Module)
        module = inner
    scripted = next(
        (name for name, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)), None
    )
    if scripted is not None:
        which = f"its submodule {scripted!r}" if scripted else "it"
        raise ConfigError(
            f"{type(module).__name__}: {which} is a TorchScript program (torch.jit.script, trace or load), and a "
            "repair needs the torch.nn.Module that it was made from. Build that, and load the weights: "
            "module.load_state_dict(program.state_dict())."
        )
    _check_tensors(module)
    return module


def _check_tensors(module: nn.Module) -> None:
    """Raises ConfigError for parameters that have no numbers, or none that a gradient step can change."""
    for name, parameter in module.named_parameters():
        tensor: Tensor = parameter
        if is_lazy(tensor):
            what, remedy = "has no shape yet", "Call the module once on a batch before it is given"
        elif tensor.device.type == "meta":
            what, remedy = "has no values (device meta)", "Load its weights first"
        elif tensor.is_complex():
            what, remedy = "is complex", "A repair takes DNNs of real numbers"
        else:
            continue
        raise ConfigError(f"{type(module).__name__}: the parameter {name} {what}. {remedy}.")


def copied(module: nn.Module) -> nn.Module:
    """A copy of the module. Tensors with a graph that it keeps as attributes are copied without that graph.

    Old-style weight and spectral norm keep such tensors, and so do modules that remember what they last saw; Python's
    deepcopy refuses them. Raises ConfigError for an attribute that cannot be copied at all.
    """
    attributes = (value for part in module.modules() for value in vars(part).values())
    plain = (value for value in attributes if isinstance(value, Tensor) and not value.is_leaf)
    memo = {id(value): value.detach().clone() for value in plain}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # what an attribute's own copying raises
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {said}), and a repair works on a copy. "
            "Leave out the attribute that refuses, or give its class a __deepcopy__."
        ) from error
