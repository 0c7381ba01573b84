"""Call a module with parameters and buffers from outside, without changing it, and twice differentiably."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metarepair.engine.vectors import State
from tasks.errors import ConfigError

# B images, C H W, K classes


class StatelessModule:
    """A module called with a state from outside; names are those of `named_parameters()` and `named_buffers()`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        members = [part for _, part in module.named_modules()]
        self._slots = _slots_of(module)
        # Attributes hold modes, and what hooks set: the weight of old-style weight norm and spectral norm.
        self._written = [d for part in members for d in (vars(part), part._parameters, part._buffers)]

    @contextmanager
    def holding(self, state: State) -> Iterator[None]:
        """Put the tensors of `state` in place of the module's own until the block ends.

        Take derivatives inside the block too: a layer under activation checkpointing runs its forward pass again
        during the backward pass, and it must find the same tensors and modes. When the block ends, every tensor, mode
        and attribute of the module is restored.
        """
        before = [(written, dict(written)) for written in self._written]
        try:
            self.put(state)
            yield
        finally:
            for written, content in before:
                written.update(
                    content
                )  # never cleared: another thread may be reading the device of a parameter
                for key in [k for k in written if k not in content] if len(written) > len(content) else ():
                    del written[key]

    def put(self, state: State) -> None:
        """Put tensors into the module, under each of their names; for use inside `holding`."""
        for holder, key, name in self._slots:
            if name in state:
                holder[key] = state[name]

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K]. Raises ConfigError if the module returns anything else."""
        output = self.module(images_BCHW)
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images_BCHW):
            came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else _kind(output)
            raise ConfigError(
                f"{type(self.module).__name__} returned {came} for {len(images_BCHW)} images; a classifier returns "
                "one tensor of logits [images, classes]. Wrap it in a module that returns only the logits."
            )
        return output


def _kind(output: Any) -> str:
    return f"a {type(output).__name__}"


def _slots_of(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Where the module holds its parameters and buffers: the dict, the key in it, and the tensor's listed name.

    A tensor that several submodules share has several slots and one name, the first.
    """
    first: dict[int, str] = {}
    slots: list[tuple[dict[str, Any], str, str]] = []
    for prefix, part in module.named_modules():
        for holder in (part._parameters, part._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    name = f"{prefix}.{key}" if prefix else key
                    slots.append((holder, key, first.setdefault(id(tensor), name)))
    return slots


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators inside the block, and restore their states when it ends."""
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
    """Replace what PyTorch cannot differentiate twice: hardsigmoid (no second derivative), weight norm (a wrong one).

    The mode also applies within torch.autograd.grad, where a checkpointed layer runs its forward pass again.
    """

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
        if func is torch.autograd.grad:
            return self._grad(*args, **(kwargs or {}))
        chosen: Callable[..., Any] = self.REPLACED.get(func, func)
        return chosen(*args, **(kwargs or {}))

    def _grad(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        *,
        grad_outputs: Sequence[Tensor | None] | None,
        materialize_grads: bool,
        **options: Any,
    ) -> tuple[Tensor | None, ...]:
        """Call torch.autograd.grad with this mode on.

        PyTorch turns a mode off for a call whose outputs or inputs contain tensors, so graph edges are passed instead.
        """
        given = grad_outputs or [None] * len(outputs)
        seeds = [torch.ones_like(o) if g is None else g for o, g in zip(outputs, given, strict=True)]
        edges, leaves = ([get_gradient_edge(t) for t in tensors] for tensors in (outputs, inputs))
        with self:
            gradients = torch.autograd.grad(edges, leaves, grad_outputs=seeds, **options)
        if not materialize_grads:
            return gradients
        wanted = bool(options.get("create_graph"))
        return tuple(
            torch.zeros_like(t, requires_grad=wanted) if g is None else g
            for t, g in zip(inputs, gradients, strict=True)
        )
