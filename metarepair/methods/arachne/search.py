"""The fitness of candidates for a few weights, and the search for the best ones by differential evolution.

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.3: S = number that is right + Σ over those that are wrong of
1 / (loss + 1), of correct images and of failures; fitness = S_correct + 10 S_wrong. 100 candidates, 100 generations,
each weight started from N(mean, sd) of its layer; a trial is a + F (b - c) of three others, F ~ U(0.5, 1) once for each
generation, taken for each weight with probability 0.7 and for one in any case, clipped to twice the layer's least and
largest weight; it replaces its candidate if it is not worse. As in the published code, a least weight above 0 (a
largest below 0) is halved instead, and the search ends when the best has not changed for more than 10 generations.

What differs: the paper replaces a candidate at once, so that the next trials of the generation see it; here a
generation is evaluated as one, and replaces after. Starting values beyond the bounds are clipped, too, and the search
also ends when all candidates are equally good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from metarepair.config.section import Fraction, Positive, Section
from metarepair.methods.arachne.candidates import Candidates, Kept
from metarepair.methods.arachne.localise import Places, weight_of
from metarepair.methods.budget import Budget
from metarepair.methods.examples import Examples
from metarepair.models.build import DeployedModel
from tasks.keys import keyed_generator

# P candidates, N images, K classes, W weights

Floats = NDArray[np.float64]
Scale = Annotated[float, Field(ge=0, le=2)]
AT_ONCE_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}  # of one operation; on a CPU more leaves its cache
KEPT_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # of what no candidate changes
FEWEST_IMAGES, MOST_IMAGES = 8, 500  # of a chunk
FEW_CANDIDATES = 16  # of a chunk where not all go: a budget that ends in it loses so many


class ArachneSettings(Section):
    """Published; last_layers and max_failures are ours, for small budgets."""

    population: Annotated[int, Field(ge=5)] = Field(100, description="Candidates, 5 or more.")
    generations: Positive = Field(100, description="Generations at most; the budget may end it before.")
    patience: Positive = Field(10, description="Generations without a better candidate, after which it ends.")
    crossover: Fraction = Field(0.7, description="Probability that a weight is taken from a trial, 0 to 1.")
    scale_low: Scale = Field(0.5, description="Least factor of a difference, 0 to 2.")
    scale_high: Scale = Field(1.0, description="Largest factor of it, 0 to 2.")
    wrong_weight: Annotated[float, Field(ge=0)] = Field(
        10.0, description="How much a failure counts in the fitness, where a correct image counts 1; from 0."
    )
    last_layers: Positive | None = Field(
        None,
        description="Layers that are searched, counted from the last: a candidate is the cheaper the later they are; "
        "all when not given.",
    )
    max_failures: Positive | None = Field(
        None, description="Failures that are used, and as many correct images; all when not given."
    )


def scores(logits_PNK: Tensor, labels_N: Tensor) -> Tensor:
    """1 for an image that is right, 1 / (loss + 1) for one that is wrong: [P, N], float64."""
    log_p_PNK = logits_PNK.double().log_softmax(-1)
    labels_PN1 = labels_N.expand(len(logits_PNK), -1)[..., None]
    loss_PN = -log_p_PNK.gather(-1, labels_PN1)[..., 0]
    return torch.where(log_p_PNK.argmax(-1) == labels_N, 1.0, 1 / (loss_PN + 1))


class Fitness:
    """Fitness of candidates for the weights at `places`; `examples` are failures, then correct images.

    `wrong_weight` is how much a failure counts. Images are counted by the budget once for each candidate.
    """

    def __init__(
        self, deployed: DeployedModel, places: Places, examples: Examples, wrong_weight: float, budget: Budget
    ) -> None:
        self.deployed, self.budget, self.examples = deployed, budget, examples
        weights_N = np.repeat([wrong_weight, 1.0], examples.sizes)
        self.labels_N, self.weights_N = (
            torch.from_numpy(array).to(deployed.device) for array in (examples.labels_N, weights_N)
        )
        self.candidates = Candidates(deployed.module, places, self._images(slice(0, 1)))
        kind = "cpu" if deployed.device.type == "cpu" else "cuda"
        pairs = max(1, AT_ONCE_BYTES[kind] // max(1, self.candidates.bytes_moved))
        images = max(pairs // FEW_CANDIDATES, FEWEST_IMAGES)
        self.images_at_once = min(images, MOST_IMAGES, len(examples))
        self.candidates_at_once = 1 if self.candidates.note else max(1, pairs // self.images_at_once)
        self._keeps = self.candidates.bytes_kept * len(examples) <= KEPT_BYTES[kind]
        self._kept: dict[int, Kept] = {}

    def __call__(self, values_PW: Floats) -> Floats:
        """Fitness [P]; -inf for candidates that the budget was over before."""
        found_P = np.full(len(values_PW), -np.inf)
        for start in range(0, len(values_PW), self.candidates_at_once):
            some_P = slice(start, start + self.candidates_at_once)
            chunk_PW = torch.from_numpy(values_PW[some_P]).to(self.candidates.before_W)
            total_P = torch.zeros(len(chunk_PW), dtype=torch.float64, device=chunk_PW.device)
            for first in range(0, len(self.examples), self.images_at_once):
                if self.budget.over:
                    return found_P
                rows = slice(first, min(first + self.images_at_once, len(self.examples)))
                self.budget.spend(images=(rows.stop - first) * len(chunk_PW))
                logits_PNK = self.candidates.logits(self._deployed(rows), chunk_PW)
                total_P += scores(logits_PNK, self.labels_N[rows]) @ self.weights_N[rows]
            # A candidate that overflows to NaN is as bad as can be.
            found_P[some_P] = total_P.nan_to_num(nan=-np.inf).cpu().numpy()
        return found_P

    def _deployed(self, rows: slice) -> Kept:
        """What candidates need of the deployed DNN on these images; kept for the next generation if there is room."""
        found = self._kept.get(rows.start) or self.candidates.keep(self._images(rows))
        if self._keeps:
            self._kept[rows.start] = found
        return found

    def _images(self, rows: slice) -> Tensor:
        return self.deployed.normalise(self.examples.images(np.arange(len(self.examples))[rows]))


class State(NamedTuple):
    """Where a search stands: candidates in shares of their bounds [P, W], the best first, their fitness; generations.

    unchanged: generations since the best last changed.
    """

    shares_PW: Floats
    fitness_P: Floats
    generation: int
    unchanged: int


def layers_of_weights(module: nn.Module, places: Places) -> Floats:
    """Lower and upper bound, mean and standard deviation [4, W] of each weight's layer."""
    of: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys(places.layers):
        weight = weight_of(module, name).detach().double()
        low, high = float(weight.min()), float(weight.max())
        low, high = (low * 2 if low < 0 else low / 2), (high * 2 if high > 0 else high / 2)
        of[name] = (low, high, float(weight.mean()), float(weight.std(correction=0)))
    return np.array([of[name] for name in places.layers]).T


def start(layers_4W: Floats, *, population: int, seed: int) -> State:
    """Candidates that are drawn from the layers' weights, with no fitness yet."""
    low_W, high_W, mean_W, sd_W = layers_4W
    drawn_PW = keyed_generator("arachne-start", seed).normal(mean_W, sd_W, (population, len(low_W)))
    shares_PW = np.clip((drawn_PW - low_W) / np.where(high_W > low_W, high_W - low_W, 1.0), 0, 1)
    return State(shares_PW, np.full(population, -np.inf), 0, 0)


@dataclass
class Search:
    """Differential evolution of weights within their layers' bounds.

    fitness: of candidates [P, W]; after: called with the state after each generation, and ends the search by True.
    All chance is keyed by seed and generation, so one that goes on from a state is the one that was not interrupted.
    """

    fitness: Callable[[Floats], Floats]
    layers_4W: Floats
    settings: ArachneSettings
    after: Callable[[State], bool]
    _: KW_ONLY
    seed: int
    state: State

    def values(self, shares_PW: Floats) -> Floats:
        """Weights of candidates that are given in shares of the bounds."""
        low_W, high_W, _, _ = self.layers_4W
        return np.asarray(low_W + shares_PW * (high_W - low_W))

    def run(self) -> State:
        """The state at the end; its first candidate is the best."""
        ended = False
        if self.state.generation == 0:
            self._go_on(self.state.shares_PW, self.fitness(self.values(self.state.shares_PW)), 0)
        while not ended and self.state.generation < self.settings.generations:
            before = self.state
            trials_PW = np.stack([self._trial(p, before.shares_PW) for p in range(len(before.shares_PW))])
            fitness_P = self.fitness(self.values(trials_PW))
            taken_P = fitness_P >= before.fitness_P
            shares_PW = np.where(taken_P[:, None], trials_PW, before.shares_PW)
            fitness_P = np.where(taken_P, fitness_P, before.fitness_P)
            self._go_on(shares_PW, fitness_P, before.generation + 1)
            equal = bool(np.isfinite(fitness_P).all()) and fitness_P.std() == 0
            ended = self.after(self.state) or self.state.unchanged > self.settings.patience or equal
        return self.state

    def _go_on(self, shares_PW: Floats, fitness_P: Floats, generation: int) -> None:
        best, order = int(fitness_P.argmax()), np.arange(len(fitness_P))
        order[[0, best]] = best, 0
        same = generation > 1 and fitness_P[best] == self.state.fitness_P[0]
        unchanged = self.state.unchanged + 1 if same else 0
        self.state = State(shares_PW[order], fitness_P[order], generation, unchanged)

    def _trial(self, candidate: int, shares_PW: Floats) -> Floats:
        """A trial in place of `candidate`."""
        settings, draw = self.settings, (self.seed, self.state.generation)
        scale = keyed_generator("arachne-scale", *draw).uniform(settings.scale_low, settings.scale_high)
        chance = keyed_generator("arachne-trial", *draw, candidate)
        others = np.delete(np.arange(len(shares_PW)), candidate)
        a_W, b_W, c_W = shares_PW[chance.choice(others, 3, replace=False)]
        taken_W = chance.random(len(a_W)) < settings.crossover
        taken_W[chance.integers(len(a_W))] = True
        found: Floats = np.where(taken_W, np.clip(a_W + scale * (b_W - c_W), 0, 1), shares_PW[candidate])
        return found
