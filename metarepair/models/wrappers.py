"""Unwrap a classifier from DataParallel, torch.compile and the like, check that it can be repaired, and copy it."""

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
    """Return the module inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile.

    A repair works on the module itself, whose names have no prefix. Raises ConfigError for TorchScript, whose weights
    cannot be replaced from outside, and for parameters that cannot be repaired.
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
            "repair needs the torch.nn.Module that it was made from. Build that module and load the weights into it: "
            "module.load_state_dict(program.state_dict())."
        )
    _check_tensors(module)
    return module


def _check_tensors(module: nn.Module) -> None:
    """Raise ConfigError for a tensor without values, or a complex parameter, which a repair does not support."""
    parameters = dict[str, Tensor](module.named_parameters())
    for name, tensor in (parameters | dict(module.named_buffers())).items():
        kind = "parameter" if name in parameters else "buffer"
        if is_lazy(tensor):
            what, remedy = "has no shape yet", "Call the module once on a batch first"
        elif tensor.device.type == "meta":
            what, remedy = "has no values (device meta)", "Load its weights first"
        elif tensor.is_complex() and name in parameters:
            what, remedy = "is complex", "A repair needs a DNN with real parameters"
        else:
            continue
        raise ConfigError(f"{type(module).__name__}: the {kind} {name} {what}. {remedy}.")


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of the module, in which tensors kept as attributes lose their autograd graph.

    Old-style weight and spectral norm keep tensors with a graph, and so do modules that store their last input;
    Python's deepcopy refuses them. Raises ConfigError for an attribute that cannot be copied at all.
    """
    attributes = (value for part in module.modules() for value in vars(part).values())
    plain = (value for value in attributes if isinstance(value, Tensor) and not value.is_leaf)
    memo = {id(value): value.detach().clone() for value in plain}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # an attribute's own copying may raise anything
        said = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {said}), and a repair works on a copy. "
            "Remove the attribute that cannot be copied, or give its class a __deepcopy__."
        ) from error
