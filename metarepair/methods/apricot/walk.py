"""Move the weights toward the reduced models that classify a failure correctly, and away from the others.

Source: Zhang & Chan 2019 (Apricot, ASE). The update for one failure is

    w ← w − rate · (a/(a+b) · (w − mean C) − b/(a+b) · (w − mean I))

- C: the reduced models that classify the failure correctly; a: their number
- I: the reduced models that classify it wrongly; b: their number

An update is linear in w and the models, so the successive updates for a batch are one weighted sum of w and the models.
Its coefficients sum to one.

Buffers: batch-norm statistics move together with the weights. Means use the same weighted sum. A variance could become
negative if that of a wrong model is far larger; so the sum is applied to log(variance + eps), which keeps it positive.
Integer tensors, and tensors equal in the DNN and all models (such as position tables), stay bit-identical.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarepair.adaptation.accuracy import accuracy_on, predict
from metarepair.adaptation.repair_data import RepairData
from metarepair.engine.vectors import State, flatten, unflatten
from metarepair.methods.base import MethodContext
from metarepair.methods.examples import BatchOrder
from metarepair.models.build import DeployedModel, read_tensors, save_weights

# M models, N failures, B failures in a batch, P coordinates that move

Strategy = Literal["both", "correct", "incorrect"]
Bools = NDArray[np.bool_]

SHARE = 0.5  # share of the budget for adjusting; training gets the rest
CHECKPOINT_S = 60.0
SAID_S = 15.0  # between log lines
CHECKPOINT = "adjusting.safetensors"


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The weighted sum w ← own · w + Σ models_M · W_M; own and models_M sum to one."""

    own: float
    models_M: NDArray[np.float64]

    @property
    def moves(self) -> bool:
        return bool(self.models_M.any())


def mixture(right_MB: Bools, *, rate: float, strategy: Strategy) -> Mixture:
    """Combine the successive updates for a batch of failures into one weighted sum.

    A failure that all models or no model classify correctly changes nothing.
    """
    own, models_M, count = 1.0, np.zeros(len(right_MB)), len(right_MB)
    for right_M in right_MB.T:
        num_right = int(right_M.sum())
        if num_right in (0, count):
            continue
        # rate · a/(a+b) toward the mean of a models is rate/(a+b) toward each of them; likewise for b.
        toward_M = right_M * (0.0 if strategy == "incorrect" else rate / count)
        away_M = ~right_M * (0.0 if strategy == "correct" else rate / count)
        kept = 1 - float(toward_M.sum() - away_M.sum())
        own, models_M = kept * own, kept * models_M + toward_M - away_M
    return Mixture(own=own, models_M=models_M)


class Coordinates:
    """Flattens the tensors that change into a vector [P], in which an update is a weighted sum."""

    def __init__(self, module: nn.Module, models: Sequence[State]) -> None:
        self.like = {
            k: v.detach().clone()
            for k, v in (*module.named_parameters(), *module.named_buffers())
            if v.is_floating_point() and any(not torch.equal(model[k], v.detach().cpu()) for model in models)
        }
        # Variances are found by the name that they have in the norms of torch, timm and most others.
        self.eps = {
            name: float(getattr(module.get_submodule(name.rpartition(".")[0]), "eps", 1e-5))
            for name in self.like
            if name.rpartition(".")[2] == "running_var"
        }

    def vector(self, state: State) -> Tensor:
        """Return the vector of a state, on the DNN's device."""
        own = {k: state[k].detach().to(v) for k, v in self.like.items()}
        return flatten({k: (v + self.eps[k]).log() if k in self.eps else v for k, v in own.items()})

    def state(self, vector_P: Tensor) -> State:
        """Return the state of a vector, as new tensors; it holds only the tensors that move."""
        tensors = unflatten(vector_P, self.like)
        return {
            k: ((v.exp() - self.eps[k]).clamp_min(0) if k in self.eps else v.clone()).to(self.like[k])
            for k, v in tensors.items()
        }


class Walk:
    """Adjusts the weights, one batch of failures at a time, and keeps an adjustment if validation improves.

    The DNN itself does not change: `run` returns the adjusted tensors.
    """

    def __init__(
        self,
        deployed: DeployedModel,
        models: Sequence[tuple[State, State]],
        data: RepairData,
        context: MethodContext,
        *,
        batch_size: int,
        rate: float,
        strategy: Strategy,
        patience: int,
    ) -> None:
        self.deployed, self.data, self.context = deployed, data, context
        self.rate, self.strategy, self.patience = rate, strategy, patience
        module = deployed.module
        self.parameters = {k: v.detach() for k, v in module.named_parameters()}
        self.buffers = {k: v.detach() for k, v in module.named_buffers()}
        self.models = list(models)
        self.coordinates = Coordinates(module, [parameters | buffers for parameters, buffers in models])
        self.w_P = self.coordinates.vector(self.parameters | self.buffers)
        self.order = BatchOrder([len(data.learn)], batch_size=batch_size, seed=context.seed)
        self.right: list[Bools] = []
        self.batch, self.gained_at, self.gains = 0, 0, 0
        self.accuracy = accuracy_on(deployed, self.parameters, self.buffers, data.validation)
        self.before = self.accuracy
        self._started = self._saved_at = self._said_at = time.monotonic()

    def run(self) -> State:
        """Return the adjusted tensors by name, none if no adjustment was kept.

        Ends after `patience` batches without improvement, or when half of the budget is spent.
        """
        self._resume()
        for parameters, buffers in self.models[len(self.right) :]:
            if self._over:
                break
            self.right.append(self._right(parameters, buffers))
            self._say(f"{len(self.right)} of {len(self.models)} reduced models evaluated")
            self._checkpoint()
        models_MP = self._as_vectors()
        while self.batch - self.gained_at < self.patience and not self._over:
            self._one_batch(models_MP)
            self._say(
                f"adjustment {self.batch}, {self.gains} kept, validation {self.accuracy:.1%}, ends after "
                f"{self.patience - self.batch + self.gained_at} more without improvement"
            )
            self._checkpoint()
        return self.coordinates.state(self.w_P) if self.gains else {}

    @property
    def words(self) -> str:
        return (
            f"{self.gains} of {self.batch} adjustments kept (by {len(self.right)} reduced models), validation "
            f"{self.before:.1%} to {self.accuracy:.1%}"
        )

    @property
    def _over(self) -> bool:
        return self.context.budget.share >= SHARE

    def _right(self, parameters: State, buffers: State) -> Bools:
        """Return which of the failures a model classifies correctly [N]."""
        learn, device = self.data.learn, self.deployed.device
        parameters = {k: v.to(device) for k, v in parameters.items()}
        buffers = {k: v.to(device) for k, v in buffers.items()}
        predicted_N = predict(self.deployed, parameters, buffers, learn).argmax(1).numpy()
        self.context.budget.spend(images=len(learn))
        right_N: Bools = predicted_N == learn.labels_N
        return right_N

    def _as_vectors(self) -> Tensor:
        """Return the evaluated models as vectors [M, P]. Each model is freed once it is copied, to save memory."""
        models_MP = self.w_P.new_empty(len(self.right), len(self.w_P))
        for row_P in models_MP:
            parameters, buffers = self.models.pop(0)
            row_P.copy_(self.coordinates.vector(parameters | buffers))
        return models_MP

    def _one_batch(self, models_MP: Tensor) -> None:
        rows = self.order.rows(self.batch)
        right_MB = np.array([right_N[rows] for right_N in self.right]).reshape(len(self.right), len(rows))
        self.batch += 1
        mixed = mixture(right_MB, rate=self.rate, strategy=self.strategy)
        if not mixed.moves:
            return
        share_M = torch.from_numpy(mixed.models_M).to(self.w_P)
        candidate_P = mixed.own * self.w_P + share_M @ models_MP
        state = self.coordinates.state(candidate_P)
        parameters = {k: state.get(k, v) for k, v in self.parameters.items()}
        buffers = {k: state.get(k, v) for k, v in self.buffers.items()}
        accuracy = accuracy_on(self.deployed, parameters, buffers, self.data.validation)
        if accuracy > self.accuracy:
            self.w_P, self.accuracy = candidate_P, accuracy
            self.gains, self.gained_at = self.gains + 1, self.batch

    def _say(self, line: str) -> None:
        if time.monotonic() - self._said_at >= SAID_S:
            self._said_at = time.monotonic()
            self.context.say(f"apricot: {line}")

    def _checkpoint(self) -> None:
        if self.context.folder is None or time.monotonic() - self._saved_at < CHECKPOINT_S:
            return
        counts = [self.batch, self.gained_at, self.gains, self.accuracy]
        spent = self.context.budget.spent.values()
        tensors = {
            "w": self.w_P,
            "right": torch.from_numpy(np.stack(self.right)),
            "counts": torch.tensor([*counts, *spent], dtype=torch.float64),
        }
        save_weights(self.context.folder / CHECKPOINT, tensors, {})
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Resume from a checkpoint if the folder has one."""
        folder = self.context.folder
        if folder is None or not (folder / CHECKPOINT).is_file():
            return
        saved = read_tensors(folder / CHECKPOINT)
        self.w_P, self.right = saved["w"].to(self.w_P), list(saved["right"].numpy())
        batch, gained_at, gains, accuracy, *spent = saved["counts"].tolist()
        self.batch, self.gained_at, self.gains, self.accuracy = (
            int(batch),
            int(gained_at),
            int(gains),
            accuracy,
        )
        self.context.budget.go_on(**dict(zip(self.context.budget.spent, spent, strict=False)))
        self.context.say(f"apricot: resumes from adjustment {self.batch}")
