"""The inner loop as pure functions: parameters and a support batch give adapted parameters.

Source: paper Algorithm 1, lines 7 and 18; MAML (Finn et al. 2017). Buffers are functional: a step returns new
ones, so a task never leaks statistics into another.
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
    """A forward pass of a batch: mean cross entropy, accuracy, and the buffers after it."""

    loss: Tensor
    accuracy: Tensor
    buffers: State


class FunctionalNet:
    """A module called with parameters and buffers from outside, in one of the batch-norm modes.

    `bf16`: layers run under bfloat16 autocast where it is safe; parameters, losses and gradients stay float32.
    Attention runs on the math kernel, the one with a second derivative. The module is put in evaluation mode once,
    here, and stays so; from then on every call leaves it as it was, buffers included. Parameters with
    `requires_grad=False` are used and never changed: they are not `trainable`, and `adapted` names none of them.
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
        # All but these are in training mode where dropout is on: some layers drop by their own flag alone.
        self._others = [m for m in module.modules() if not isinstance(m, _BatchNorm)]

    def parameters(self) -> State:
        """The module's own parameters, detached."""
        return {k: v.detach() for k, v in self.module.named_parameters()}

    def buffers(self) -> State:
        """The module's own buffers."""
        return {k: v.detach() for k, v in self.module.named_buffers()}

    def rate_factors(self) -> State:
        """What learned rates start from: a one for every adapted tensor and step, [T] each; none without such rates."""
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
        """A pass of a support batch; take derivatives of its loss inside the block.

        `step` keys the masks. The buffers after it are other ones with `adapt` alone, and not with `moves=False`: that
        is enough where a step is done again.
        """
        with self.holding_support(parameters, buffers, batch, step=step, moves=moves) as held:
            logits_BK = self._logits(batch)
            after = {k: held[k] if k in self._statistics else v for k, v in buffers.items()}
            # A checkpointed layer that runs once more finds the buffers of its first pass, and moves copies.
            self._stateless.put(self._copied(buffers, moves=moves))
            yield _pass_of(logits_BK, batch, after)

    @contextmanager
    def holding_support(
        self, parameters: State, buffers: State, batch: Batch, *, step: int, moves: bool = True
    ) -> Iterator[State]:
        """The module as `support` has it, for derivatives of an earlier pass; yields the buffers that it holds."""
        moves = moves and self.rule.batch_norm == "adapt"
        copied = self._copied(buffers, moves=moves)
        with self._holding(parameters | copied, batch, step):
            self._set_batch_norm(own_batch=self.rule.batch_norm != "frozen", moves=moves)
            for module in self._others if self.rule.dropout else ():
                module.training = True
            yield copied

    @contextmanager
    def query(self, parameters: State, buffers: State, batch: Batch) -> Iterator[Pass]:
        """A pass of a query batch, which moves no statistics; take derivatives of its loss inside the block."""
        with self._holding(parameters | self._copied(buffers, moves=False), batch, "query"):
            self._set_batch_norm(own_batch=self.rule.batch_norm == "batch", moves=False)
            yield _pass_of(self._logits(batch), batch, buffers)

    @torch.inference_mode()
    def logits(self, parameters: State, buffers: State, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K] in evaluation: stored statistics, whatever the mode."""
        with self._stateless.holding(parameters | self._copied(buffers, moves=False)):
            return self._stateless(images_BCHW)

    def _copied(self, buffers: State, *, moves: bool) -> State:
        """The buffers, with copies of those that a pass may write to, so that no other step sees the change."""
        kept = set() if moves else self._statistics
        return {k: v if k in kept else v.clone() for k, v in buffers.items()}

    @contextmanager
    def _holding(self, state: State, batch: Batch, key: int | str) -> Iterator[None]:
        """All that a pass depends on besides the batch, until the block ends. Draws are keyed, also where no layer is
        told to drop: some modules always do.
        """
        masks, kernel = seeded(batch.images_BCHW.device, mask_seed(batch, key)), sdpa_kernel(SDPBackend.MATH)
        with self._stateless.holding(state), masks, kernel, TwiceDifferentiable():
            yield

    def _logits(self, batch: Batch) -> Tensor:
        device = batch.images_BCHW.device.type
        # Autocast's cache holds casts of leaves with their graphs: a second derivative must not meet old ones.
        cast = torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.bf16 else nullcontext()
        with cast:
            logits_BK = self._stateless(batch.images_BCHW.clone())  # a forward pass may write to its input
        return logits_BK.float() if self.bf16 else logits_BK

    def _set_batch_norm(self, *, own_batch: bool, moves: bool) -> None:
        """Inside `_holding`, which sets it back."""
        for norm in self._norms:
            norm.training, norm.momentum = own_batch, self.rule.batch_norm_momentum
            norm.track_running_stats = norm.track_running_stats and (moves or not own_batch)


def mask_seed(batch: Batch, key: int | str) -> int:
    """What a pass of `batch` seeds torch with; `key` is the inner step, or "query"."""
    return int(keyed_generator("dropout", batch.seed, key).integers(2**63))


def _pass_of(logits_BK: Tensor, batch: Batch, buffers: State) -> Pass:
    accuracy = (logits_BK.detach().argmax(1) == batch.labels_B).float().mean()
    return Pass(loss=F.cross_entropy(logits_BK, batch.labels_B), accuracy=accuracy, buffers=buffers)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where the inner loop stands: all parameters, and the velocity of the adapted ones (with momentum)."""

    parameters: State
    velocity: tuple[Tensor, ...] | None = None

    def leaves(self, names: Sequence[str]) -> State:
        """All parameters; those of `names` as new leaves of a graph."""
        mine = set(names)
        return {
            k: v.detach().requires_grad_() if k in mine else v.detach() for k, v in self.parameters.items()
        }


@torch.no_grad()
def inner_step(
    net: FunctionalNet, point: Point, gradients: Sequence[Tensor], step: int, factors: State
) -> tuple[Point, list[Tensor]]:
    """u ← μu + g + λθ, θ ← θ − ηu for the adapted parameters, as new tensors; and u."""
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
    """−D u: the adapted parameters' parts of a vector, times the negative rates of a step."""
    if not factors:
        return list(torch._foreach_mul(list(u), -net.rule.rate))
    return list(torch._foreach_mul(list(u), [-net.rule.rate * factors[k][step] for k in net.adapted]))


@torch.enable_grad()
def adapt(
    net: FunctionalNet, parameters: State, buffers: State, support: Batch, factors: State | None = None
) -> tuple[State, State]:
    """All inner steps without a graph: what repair does (Algorithm 1, line 18). Parameters and buffers after it."""
    check_call(net, parameters, buffers)
    check_batch("support", support.images_BCHW, support.labels_B)
    if factors:
        check_state("factors", factors, net.adapted)
    point = Point(parameters=parameters)
    for step in range(net.rule.steps):
        leaves = point.leaves(net.adapted)
        with net.support(leaves, buffers, support, step=step) as found:
            gradients = gradients_of(net, found.loss, [leaves[k] for k in net.adapted])
        buffers = found.buffers
        point, _ = inner_step(net, point, gradients, step, factors or {})
    return {k: v.detach() for k, v in point.parameters.items()}, buffers


def check_call(net: FunctionalNet, parameters: State, buffers: State) -> None:
    """Raises ConfigError where gradients are off for good, nothing can be adapted, or the states are not the net's."""
    if torch.is_inference_mode_enabled():
        raise ConfigError("torch.inference_mode() is on, and adaptation needs gradients. Call outside of it.")
    check_state("parameters", parameters, net.parameter_names)
    check_state("buffers", buffers, net.buffer_names)
    if not net.adapted:
        check_trainable(net.module, net.rule.parts)


def gradients_of(
    net: FunctionalNet, loss: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradient of `loss` by each leaf; zeros for a parameter that the loss does not reach.

    Inside the block of the pass that `loss` is of. Raises ConfigError whatever autograd fails with.
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
