"""The classifier inside what runs or averages it; programs that cannot be repaired are refused."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
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
    return module
