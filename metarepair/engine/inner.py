"""Adapt parameters to a support batch by SGD, as pure functions.

A step returns new parameters and new buffers, so no statistics leak from one task into another.
Source: paper Algorithm 1, lines 7 and 18; MAML (Finn et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from metarepair.engine.adapted import adapted_names, check_trainable
from metarepair.engine.checks import (
    check_batch,
    check_state,
    differentiating,
    no_path,
)
from metarepair.engine.stateless import StatelessModule, TwiceDifferentiable, seeded
from metarepair.engine.types import Batch, InnerRule
from metarepair.engine.vectors import State
from tasks.errors import ConfigError
from tasks.keys import keyed_generator

# B images, C H W, K classes, T inner steps


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The result of a forward pass of one batch.

    Attributes:
        loss: Mean cross entropy, a scalar tensor with its graph.
        accuracy: Share of correct predictions, a detached scalar tensor in 0..1.
        buffers: All buffers after the pass, by name.
    """

    loss: Tensor
    accuracy: Tensor
    buffers: State


class FunctionalNet:
    """A module called with parameters and buffers from outside, under an inner rule.

    The constructor puts the module into evaluation mode, where it stays. From then on every call leaves the module
    unchanged, buffers included. In `support` and `query`, attention runs on PyTorch's math kernel, the one with a
    second derivative.

    Args:
        module: A classifier from images [B, C, H, W] to logits [B, K].
        rule: How tasks adapt; it also sets how batch norm and dropout behave in a pass.
        bf16: Run the layers of `support` and `query` under bfloat16 autocast where it is safe. Parameters, losses and
            gradients stay float32.

    Attributes:
        trainable: Names of the parameters with `requires_grad=True`. The others are used and never changed.
        adapted: Names of the trainable parameters that `rule.parts` selects.
        parameter_names: Names of all parameters.
        buffer_names: Names of all buffers.

    Raises:
        ConfigError: A part in `rule.parts` matches no parameter.
    """

    def __init__(self, module: nn.Module, rule: InnerRule, *, bf16: bool = False) -> None:
        self.module = module.eval()
        self.rule, self.bf16 = rule, bf16
        self.trainable = tuple(k for k, v in module.named_parameters() if v.requires_grad)
        self.adapted = tuple(k for k in adapted_names(module, rule.parts) if k in set(self.trainable))
        self.parameter_names = tuple(k for k, _ in module.named_parameters())
        self.buffer_names = tuple(k for k, _ in module.named_buffers())
        norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
        self._norms = list(norms.values())
        self._statistics = {f"{name}.{key}" for name, m in norms.items() for key, _ in m.named_buffers()}
        self._stateless = StatelessModule(module)
        # With dropout on, these go into training mode: some layers look only at their own flag.
        self._others = [m for m in module.modules() if not isinstance(m, _BatchNorm)]

    def parameters(self) -> State:
        """The module's own parameters by name, detached; they share the module's memory."""
        return {k: v.detach() for k, v in self.module.named_parameters()}

    def buffers(self) -> State:
        """The module's own buffers by name, detached; they share the module's memory."""
        return {k: v.detach() for k, v in self.module.named_buffers()}

    def rate_factors(self) -> State:
        """Initial factors of learned rates: ones [T] for each adapted tensor; empty without `rule.learned_rates`."""
        if not self.rule.learned_rates:
            return {}
        own = self.parameters()
        return {
            k: torch.ones(self.rule.steps, dtype=own[k].dtype, device=own[k].device) for k in self.adapted
        }

    @contextmanager
    def support(
        self, parameters: State, buffers: State, batch: Batch, *, step: int = 0, moves: bool = True
    ) -> Iterator[Pass]:
        """Run a support batch; take derivatives of the loss inside the block.

        Args:
            parameters: All parameters, by name.
            buffers: All buffers, by name.
            batch: The support batch.
            step: Index of the inner step, from 0; it keys dropout masks.
            moves: Whether batch norm updates its statistics, which it does only under "adapt". Give False to repeat a
                step whose updated statistics are known.

        Yields:
            The loss, the accuracy, and the buffers after the pass.

        Raises:
            ConfigError: The module returns anything but one tensor of logits [B, K].
        """
        with self.holding_support(parameters, buffers, batch, step=step, moves=moves) as held:
            logits_BK = self._logits(batch)
            after = {k: held[k] if k in self._statistics else v for k, v in buffers.items()}
            # A checkpointed layer that runs again starts from the buffers of its first pass, and updates copies.
            self._stateless.put(self._copied(buffers, moves=moves))
            yield _pass_of(logits_BK, batch, after)

    @contextmanager
    def holding_support(
        self, parameters: State, buffers: State, batch: Batch, *, step: int, moves: bool = True
    ) -> Iterator[State]:
        """Set the module up as `support` does, for derivatives of an earlier pass; yield the buffers that it holds."""
        moves = moves and self.rule.batch_norm == "adapt"
        copied = self._copied(buffers, moves=moves)
        with self._holding(parameters | copied, batch, step):
            self._set_batch_norm(own_batch=self.rule.batch_norm != "frozen", moves=moves)
            for module in self._others if self.rule.dropout else ():
                module.training = True
            yield copied

    @contextmanager
    def query(self, parameters: State, buffers: State, batch: Batch) -> Iterator[Pass]:
        """Run a query batch, which updates no statistics; take derivatives of the loss inside the block.

        Args:
            parameters: All parameters, by name.
            buffers: All buffers, by name.
            batch: The query batch.

        Yields:
            The loss, the accuracy, and the given buffers.

        Raises:
            ConfigError: The module returns anything but one tensor of logits [B, K].
        """
        with self._holding(parameters | self._copied(buffers, moves=False), batch, "query"):
            self._set_batch_norm(own_batch=self.rule.batch_norm == "batch", moves=False)
            yield _pass_of(self._logits(batch), batch, buffers)

    @torch.inference_mode()
    def logits(self, parameters: State, buffers: State, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W] in evaluation: batch norm uses stored statistics under every rule."""
        with self._stateless.holding(parameters | self._copied(buffers, moves=False)):
            return self._stateless(images_BCHW)

    def _copied(self, buffers: State, *, moves: bool) -> State:
        """The buffers, with copies of those that a pass may write to, so that no other step sees the change."""
        kept = set() if moves else self._statistics
        return {k: v if k in kept else v.clone() for k, v in buffers.items()}

    @contextmanager
    def _holding(self, state: State, batch: Batch, key: int | str) -> Iterator[None]:
        """Set everything that a pass depends on besides the batch, until the block ends.

        Random draws are keyed even without dropout in the rule, since some modules always drop.
        """
        masks, kernel = seeded(batch.images_BCHW.device, mask_seed(batch, key)), sdpa_kernel(SDPBackend.MATH)
        with self._stateless.holding(state), masks, kernel, TwiceDifferentiable():
            yield

    def _logits(self, batch: Batch) -> Tensor:
        device = batch.images_BCHW.device.type
        # Autocast caches casts of leaves with their graphs; a second derivative must not use those of an earlier pass.
        cast = torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.bf16 else nullcontext()
        with cast:
            logits_BK = self._stateless(batch.images_BCHW.clone())  # a forward pass may write to its input
        return logits_BK.float() if self.bf16 else logits_BK

    def _set_batch_norm(self, *, own_batch: bool, moves: bool) -> None:
        """Set the mode of every batch norm; for use inside `_holding`, which restores it."""
        for norm in self._norms:
            norm.training, norm.momentum = own_batch, self.rule.batch_norm_momentum
            norm.track_running_stats = norm.track_running_stats and (moves or not own_batch)


def mask_seed(batch: Batch, key: int | str) -> int:
    """The seed of torch's generators for a pass of `batch`; `key` is the inner step, or "query"."""
    return int(keyed_generator("dropout", batch.seed, key).integers(2**63))


def _pass_of(logits_BK: Tensor, batch: Batch, buffers: State) -> Pass:
    accuracy = (logits_BK.detach().argmax(1) == batch.labels_B).float().mean()
    return Pass(loss=F.cross_entropy(logits_BK, batch.labels_B), accuracy=accuracy, buffers=buffers)


@dataclass(frozen=True, kw_only=True)
class Point:
    """The inner loop between two steps: all parameters, and with momentum the velocity of the adapted ones."""

    parameters: State
    velocity: tuple[Tensor, ...] | None = None

    def leaves(self, names: Sequence[str]) -> State:
        """All parameters, detached; those in `names` are new leaves that require a gradient."""
        wanted = set(names)
        return {
            k: v.detach().requires_grad_() if k in wanted else v.detach() for k, v in self.parameters.items()
        }


@torch.no_grad()
def inner_step(
    net: FunctionalNet, point: Point, gradients: Sequence[Tensor], step: int, factors: State
) -> tuple[Point, list[Tensor]]:
    """One SGD step of the adapted parameters: u ← μu + g + λθ, θ ← θ − ηu. Return the new point, and u."""
    rule = net.rule
    theta = [point.parameters[k] for k in net.adapted]
    u = [g.detach() for g in gradients]
    if rule.weight_decay:
        u = list(torch._foreach_add(u, theta, alpha=rule.weight_decay))
    if rule.momentum and point.velocity is not None:
        u = list(torch._foreach_add(u, point.velocity, alpha=rule.momentum))
    moved = torch._foreach_add(theta, scaled_by_rates(net, u, step, factors))
    parameters = point.parameters | dict(zip(net.adapted, moved, strict=True))
    return Point(parameters=parameters, velocity=tuple(u) if rule.momentum else None), u


def scaled_by_rates(net: FunctionalNet, u: Sequence[Tensor], step: int, factors: State) -> list[Tensor]:
    """−D u: a vector over the adapted parameters, times the negative rates of a step."""
    if not factors:
        return list(torch._foreach_mul(list(u), -net.rule.rate))
    return list(torch._foreach_mul(list(u), [-net.rule.rate * factors[k][step] for k in net.adapted]))


@torch.enable_grad()
def adapt(
    net: FunctionalNet, parameters: State, buffers: State, support: Batch, factors: State | None = None
) -> tuple[State, State]:
    """Run all inner steps and keep no graph, as a repair does.

    Source: paper Algorithm 1, line 18 (line 7 is the same loop, differentiated by `task_gradient`).

    Args:
        net: The model and its inner rule.
        parameters: All parameters, by name; `net.parameters()` for the module's own. They are not changed.
        buffers: All buffers, by name; `net.buffers()` for the module's own. They are not changed.
        support: The batch to adapt to. Every step uses all of it.
        factors: Factors of learned rates, [T] for each adapted tensor; None for `rule.rate` alone.

    Returns:
        The adapted parameters, detached, and the buffers after the last step. Both hold every name.

    Raises:
        ConfigError: Gradients are off (torch.inference_mode()), a state has missing or extra names, no selected
            parameter is trainable, or autograd cannot differentiate the model.
        DataError: The support batch is empty, or has a different number of labels than of images.
    """
    check_call(net, parameters, buffers)
    check_batch("support", support.images_BCHW, support.labels_B)
    if factors:
        check_state("factors", factors, net.adapted)
    point = Point(parameters=parameters)
    for step in range(net.rule.steps):
        leaves = point.leaves(net.adapted)
        with net.support(leaves, buffers, support, step=step) as forward:
            gradients = gradients_of(net, forward.loss, [leaves[k] for k in net.adapted])
        buffers = forward.buffers
        point, _ = inner_step(net, point, gradients, step, factors or {})
    return {k: v.detach() for k, v in point.parameters.items()}, buffers


def check_call(net: FunctionalNet, parameters: State, buffers: State) -> None:
    """Raise ConfigError if inference mode is on, no selected parameter is trainable, or a state is not the net's."""
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "torch.inference_mode() is on, and adaptation needs gradients. Leave that mode first."
        )
    check_state("parameters", parameters, net.parameter_names)
    check_state("buffers", buffers, net.buffer_names)
    if not net.adapted:
        check_trainable(net.module, net.rule.parts)


def gradients_of(
    net: FunctionalNet, loss: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradient of `loss` with respect to each leaf; zeros for a leaf that the loss does not depend on.

    Call this inside the block of the pass that gave `loss`. Raises ConfigError for any error of autograd but running
    out of memory.
    """
    if not loss.requires_grad:
        raise no_path(net.module, len(leaves))

    def differentiate(*, create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss, list(leaves), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

    first = partial(differentiate, create_graph=False)
    with differentiating(net.module, second=lambda: create_graph and _works(first)):
        return differentiate(create_graph=create_graph)


def _works(differentiate: Callable[[], object]) -> bool:
    try:
        differentiate()
    except Exception:
        return False
    return True
