"""Find the most vulnerable block of a DNN from its failures and clean images.

Source: Qi et al. 2023 (ArchRepair) localises by an adversarial-aware spectrum analysis of neurons' status and weights'
gradients, and publishes no formula. Ours: each channel gets a suspiciousness by Tarantula (Jones & Harrold 2005) over
failures, correctly classified clean images and their FGSM variants (Goodfellow et al. 2015). The score of a block is
the mean suspiciousness of its top tenth of channels × the gradient of its weights over the failures. This gradient is
either Σ|w·∂L/∂w| or the mean of |∂L/∂w|. The mean falls with depth in any DNN, because early weights are few and are
used at many places: with noise put into one block of ResNet-8 or ConvNeXt, it names the first block whichever block
has the noise. The sum measures how much the loss depends on the block, and finds the right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.archrepair.block import BlockShape
from metarepair.methods.archrepair.find import number_of_weights
from metarepair.methods.budget import Budget
from metarepair.models.build import DeployedModel
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels

# N executions, B images, C channels, H W pixels

BATCH = 100
GradientScore = Literal["weighted", "mean"]


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """The most vulnerable block, its shape, and the scores of all blocks."""

    block: str
    shape: BlockShape
    scores: Mapping[str, float]


@dataclass(kw_only=True)
class Spectrum:
    """Every execution's mean of each channel at the blocks' outputs, whether the DNN failed, and if it was clean."""

    means: dict[str, list[Tensor]]
    failing: list[Tensor]
    clean: list[Tensor]

    def suspiciousness(self) -> dict[str, Tensor]:
        """Return Tarantula's suspiciousness of every channel [C], by block.

        A channel is active in an execution if its mean is above its average over the clean images.
        """
        failing_N, clean_N = torch.cat(self.failing), torch.cat(self.clean)
        suspicious = {}
        for name, parts in self.means.items():
            means_NC = torch.cat(parts)
            suspicious[name] = tarantula(means_NC > means_NC[clean_N].mean(0), failing_N)
        return suspicious


def tarantula(active_NC: Tensor, failing_N: Tensor) -> Tensor:
    """Return the suspiciousness [C] of each channel, from 0 to 1 (Jones & Harrold 2005).

    With f and p the shares of failing and of passing runs in which the channel is active, it is f / (f + p), or 0 for a
    channel that is never active.
    """
    failed_C = active_NC[failing_N].double().mean(0)
    passed_C = active_NC[~failing_N].double().mean(0)
    return torch.where(failed_C + passed_C > 0, failed_C / (failed_C + passed_C), 0.0)


def top_mean(suspiciousness_C: Tensor, share: float) -> float:
    """Return the mean of the largest `share` of the values, at least one value."""
    count = max(1, math.ceil(share * len(suspiciousness_C)))
    return float(suspiciousness_C.topk(count).values.mean())


def localise(
    deployed: DeployedModel,
    shapes: Mapping[str, BlockShape],
    data: RepairData,
    budget: Budget,
    *,
    correct: int,
    epsilon: float,
    top_share: float,
    gradient: GradientScore,
    seed: int,
) -> Localisation:
    """Find the block with the largest score.

    correct: number of correctly classified clean images to use and to attack with FGSM of strength `epsilon` (for
    pixels in [0, 1]). Localisation ends with the budget, but not before a batch of failures and a correct clean image.
    Raises DataError if no clean image is classified correctly.
    """
    observer = _Observer(deployed, tuple(shapes), epsilon)
    fails = iter(range(0, len(data.learn), BATCH))
    assert data.clean is not None  # the method declares clean in `uses`
    order = keyed_generator("archrepair-correct", seed).permutation(len(data.clean))
    cleans, right = iter(range(0, len(order), BATCH)), 0
    with observer.recording():
        while not (budget.over and observer.failures and right):
            start, first = next(fails, None), next(cleans, None) if right < correct else None
            if start is None and first is None:
                break
            if start is not None:
                rows = slice(start, start + BATCH)
                images = data.learn.images_NHWC[rows]
                budget.spend(images=observer.see_failures(images, data.learn.labels_N[rows]))
            if first is not None:
                chosen = order[first : first + BATCH]
                images = data.clean.images_NHWC[chosen]
                num_right, seen = observer.see_clean(images, data.clean.labels_N[chosen])
                right += num_right
                budget.spend(images=seen)
    if not right:
        raise DataError(
            f"archrepair compares failures with correctly classified clean images, and the DNN classifies none of the "
            f"{len(order)} clean images correctly. Check that preprocessing and order of classes are those that it was "
            "trained with."
        )
    scores = observer.scores(top_share, gradient)
    best = max(scores, key=lambda name: scores[name])
    return Localisation(block=best, shape=shapes[best], scores=scores)


class _Observer:
    """Runs the DNN, and records the channel means of each execution and the gradients of the failures."""

    def __init__(self, deployed: DeployedModel, names: Sequence[str], epsilon: float) -> None:
        self.deployed, self.module, self.epsilon = deployed, deployed.module.eval(), epsilon
        self.blocks = {name: self.module.get_submodule(name) for name in names}
        self.spectrum = Spectrum(means={name: [] for name in names}, failing=[], clean=[])
        self.failures = 0
        watched = {id(p) for block in self.blocks.values() for p in block.parameters()}
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in watched and parameter.is_floating_point())
            parameter.grad = None
        self._last: dict[str, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the channel means at each block's output in every forward pass."""

        def hook_of(name: str) -> Any:
            def hook(_: nn.Module, __: Any, y_BCHW: Tensor) -> None:
                self._last[name] = y_BCHW.detach().mean(dim=(2, 3)).cpu()

            return hook

        handles = [block.register_forward_hook(hook_of(name)) for name, block in self.blocks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def see_failures(self, images_BHWC_u8: Pixels, labels_B: Ints) -> int:
        """Make one pass over failures. Returns the number of images that went through the DNN."""
        x_BCHW, target_B = self.deployed.normalise(images_BHWC_u8), self._labels(labels_B)
        loss = F.cross_entropy(self.module(x_BCHW), target_B, reduction="sum")
        torch.autograd.backward(loss)
        self.failures += len(labels_B)
        everywhere = torch.ones(len(labels_B), dtype=torch.bool)
        self._write(everywhere, failing_B=everywhere, clean=False)
        return len(labels_B)

    def see_clean(self, images_BHWC_u8: Pixels, labels_B: Ints) -> tuple[int, int]:
        """Make a pass over clean images, and one over FGSM variants of the correctly classified ones.

        Returns the number of correctly classified images, and of all images that went through the DNN.
        """
        x_BCHW = self.deployed.normalise(images_BHWC_u8).requires_grad_()
        target_B = self._labels(labels_B)
        logits_BK = self.module(x_BCHW)
        right_B = logits_BK.detach().argmax(1) == target_B
        self._write(right_B.cpu(), failing_B=torch.zeros(len(labels_B), dtype=torch.bool), clean=True)
        num_right = int(right_B.sum())
        if not num_right:
            return 0, len(labels_B)
        (gradient_BCHW,) = torch.autograd.grad(F.cross_entropy(logits_BK, target_B, reduction="sum"), x_BCHW)
        variants_BCHW = fgsm(self.deployed, x_BCHW.detach(), gradient_BCHW, self.epsilon)[right_B]
        with torch.no_grad():
            wrong_B = self.module(variants_BCHW).argmax(1) != target_B[right_B]
        self._write(torch.ones(num_right, dtype=torch.bool), failing_B=wrong_B.cpu(), clean=False)
        return num_right, len(labels_B) + num_right

    def scores(self, top_share: float, gradient: GradientScore) -> dict[str, float]:
        """Return suspiciousness × gradient, by block."""
        suspicious = self.spectrum.suspiciousness()
        return {
            name: top_mean(suspicious[name], top_share) * self._gradient(block, gradient)
            for name, block in self.blocks.items()
        }

    @torch.no_grad()
    def _gradient(self, block: nn.Module, kind: GradientScore) -> float:
        """Return Σ|w·∂L/∂w| or mean |∂L/∂w| over the block's weights; L is the mean over the failures."""
        pairs = [(p, p.grad) for p in block.parameters() if p.grad is not None]
        if kind == "mean":
            return (
                sum(float(g.abs().double().sum()) for _, g in pairs)
                / self.failures
                / number_of_weights(block)
            )
        return sum(float((p * g).abs().double().sum()) for p, g in pairs) / self.failures

    def _labels(self, labels_B: Ints) -> Tensor:
        return torch.from_numpy(labels_B).to(self.deployed.device)

    def _write(self, rows_B: Tensor, *, failing_B: Tensor, clean: bool) -> None:
        for name, means_BC in self._last.items():
            self.spectrum.means[name].append(means_BC[rows_B])
        self.spectrum.failing.append(failing_B[rows_B])
        self.spectrum.clean.append(torch.full((int(rows_B.sum()),), clean))


def fgsm(deployed: DeployedModel, x_BCHW: Tensor, gradient_BCHW: Tensor, epsilon: float) -> Tensor:
    """Return x + ε·sign(∂L/∂x) (Goodfellow et al. 2015, Sec. 4), with ε for pixels in [0, 1], clamped to [0, 1]."""
    mean = torch.tensor(deployed.mean, dtype=x_BCHW.dtype, device=x_BCHW.device).view(-1, 1, 1)
    std = torch.tensor(deployed.std, dtype=x_BCHW.dtype, device=x_BCHW.device).view(-1, 1, 1)
    attacked_BCHW = x_BCHW + epsilon / std * gradient_BCHW.sign()
    return attacked_BCHW.clamp((0 - mean) / std, (1 - mean) / std)
