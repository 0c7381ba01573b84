"""A module, a state and images in, logits out: a call that leaves the module as it was and can be derived twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metarepair.vectors import State
from tasks.errors import ConfigError

# B images, C H W, K classes


class StatelessModule:
    """A module called with a state from outside, by the names of `named_parameters()` and `named_buffers()`.

    Whatever a call writes is gone after it: buffers changed in place, attributes set by hooks. `statistics` names
    the buffers that a caller looks after himself, and whose tensors are used as they are.
    """

    def __init__(self, module: nn.Module, statistics: set[str]) -> None:
        self.module = module
        self._own = {k for k, _ in module.named_buffers()} - statistics
        self._other_names = other_names(module)
        # The hooks of old-style weight and spectral norm set their weight as a plain attribute.
        self._plain = [
            (m, k, v) for m in module.modules() for k, v in vars(m).items() if isinstance(v, Tensor)
        ]

    def __call__(self, parameters: State, buffers: State, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K]. Raises ConfigError when the module returns anything else."""
        own = {k: v.clone() if k in self._own else v for k, v in buffers.items()}
        state = parameters | own
        # Not torch's tie_weights: it swaps one module with two names twice, and leaves the second in place.
        state |= {name: state[first] for name, first in self._other_names.items() if first in state}
        try:
            found = functional_call(self.module, state, (images_BCHW,), tie_weights=False)
        finally:
            for module, key, value in self._plain:
                setattr(module, key, value)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images_BCHW):
            came = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else _kind(found)
            raise ConfigError(
                f"{type(self.module).__name__} returned {came} for {len(images_BCHW)} images; a classifier returns "
                "one tensor of logits [images, classes]. Wrap it in a module that returns these alone."
            )
        return found


def _kind(found: Any) -> str:
    return f"a {type(found).__name__}"


def other_names(module: nn.Module) -> dict[str, str]:
    """Further names of a tensor that several submodules share, each with the first: the one it is listed by.

    A submodule with two names counts once, by its first.
    """
    first: dict[int, str] = {}
    found = {}
    for prefix, part in module.named_modules():
        for key, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{key}" if prefix else key
                known = first.setdefault(id(tensor), name)
                if known != name:
                    found[name] = known
    return found


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """What torch draws inside comes from `seed`; its generators go on afterwards as if nothing had been drawn."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return F.relu6(input + 3) / 6


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


class TwiceDifferentiable(TorchFunctionMode):
    """Replaces what torch cannot derive twice: hardsigmoid (no second derivative), weight norm (a wrong one)."""

    REPLACED: Mapping[Any, Callable[..., Tensor]] = {
        F.hardsigmoid: _hardsigmoid,
        torch._C._nn.hardsigmoid: _hardsigmoid,
        torch._weight_norm: _weight_norm,
    }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        chosen: Callable[..., Any] = self.REPLACED.get(func, func)
        return chosen(*args, **(kwargs or {}))
