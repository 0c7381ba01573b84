"""Parameters and a support batch in, adapted parameters out: the inner loop as pure functions.

Source: paper Algorithm 1, lines 7 and 18; MAML (Finn et al. 2017). Buffers are functional: a step returns new
ones, so a task never leaks statistics into another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

# B images, C H W, K classes

State = dict[str, Tensor]
BatchNormMode = Literal["frozen", "adapt", "batch"]


@dataclass(frozen=True, kw_only=True)
class InnerRule:
    """How a task adapts: `steps` of SGD at `rate`, and what support batches do to batch-norm statistics.

    frozen: stored statistics normalise, nothing updates them. adapt: the support is normalised by its own batch,
    which also moves the stored statistics by `batch_norm_momentum`; queries use the stored ones. batch: support
    and query are normalised by their own batch (the original MAML code; meta-training only).
    """

    steps: int
    rate: float
    batch_norm: BatchNormMode
    batch_norm_momentum: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised images [B, C, H, W] and their labels [B]."""

    images_BCHW: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return len(self.labels_B)


class FunctionalNet:
    """A module called with parameters and buffers from outside, in one of the batch-norm modes."""

    def __init__(self, module: nn.Module, rule: InnerRule) -> None:
        self.module = module.eval()
        self.rule = rule
        self._norms: list[_BatchNorm] = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def parameters(self) -> State:
        """The module's own parameters, detached."""
        return {k: v.detach() for k, v in self.module.named_parameters()}

    def buffers(self) -> State:
        """The module's own buffers."""
        return {k: v.detach() for k, v in self.module.named_buffers()}

    def support(self, parameters: State, buffers: State, batch: Batch) -> tuple[Tensor, State]:
        """Mean cross entropy on a support batch, and the buffers after it (unchanged unless `adapt`)."""
        mode = self.rule.batch_norm
        logits_BK, after = self._call(parameters, buffers, batch.images_BCHW, own_batch=mode != "frozen")
        return F.cross_entropy(logits_BK, batch.labels_B), after if mode == "adapt" else buffers

    def query(self, parameters: State, buffers: State, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy and accuracy on a query batch; never sets statistics."""
        own_batch = self.rule.batch_norm == "batch"
        logits_BK, _ = self._call(parameters, buffers, batch.images_BCHW, own_batch=own_batch)
        accuracy = (logits_BK.detach().argmax(1) == batch.labels_B).float().mean()
        return F.cross_entropy(logits_BK, batch.labels_B), accuracy

    @torch.inference_mode()
    def logits(self, parameters: State, buffers: State, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K] in evaluation: stored statistics, whatever the mode."""
        return self._call(parameters, buffers, images_BCHW, own_batch=False)[0]

    def _call(
        self, parameters: State, buffers: State, images_BCHW: Tensor, *, own_batch: bool
    ) -> tuple[Tensor, State]:
        # Batch norm updates its statistics in place: on copies, so that no other step's graph sees the change.
        mine = {k: v.clone() for k, v in buffers.items()} if own_batch else buffers
        for norm in self._norms:
            norm.training, norm.momentum = own_batch, self.rule.batch_norm_momentum
        with sdpa_kernel(SDPBackend.MATH):  # the one attention kernel with a second derivative
            logits_BK: Tensor = functional_call(self.module, (parameters, mine), (images_BCHW,))
        for norm in self._norms:
            norm.training = False
        return logits_BK, mine


def sgd_step(parameters: State, gradients: Iterable[Tensor], rate: float) -> State:
    """θ − η g, as new tensors (differentiable where g is)."""
    return {k: p - rate * g for (k, p), g in zip(parameters.items(), gradients, strict=True)}


def adapt(net: FunctionalNet, parameters: State, buffers: State, support: Batch) -> tuple[State, State]:
    """All inner steps without a graph: what repair does (Algorithm 1, line 18)."""
    for _ in range(net.rule.steps):
        leaves = {k: v.detach().requires_grad_() for k, v in parameters.items()}
        loss, buffers = net.support(leaves, buffers, support)
        parameters = sgd_step(parameters, gradients_of(loss, leaves), net.rule.rate)
    return {k: v.detach() for k, v in parameters.items()}, buffers


def gradients_of(loss: Tensor, leaves: State, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of `loss` by each leaf; zeros for a parameter that the loss does not reach."""
    return torch.autograd.grad(
        loss, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
