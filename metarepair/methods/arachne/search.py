"""Search the values of a few weights by differential evolution, with the fitness of each candidate.

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.3. The score S of a set of images is the number that is
classified correctly, plus the sum of 1 / (loss + 1) over the others. Fitness = S_correct + 10 S_wrong, with S_correct
over the correct images and S_wrong over the failures. There are 100 candidates and 100 generations. Each weight starts
from N(mean, sd) of its layer. A trial is a + F (b - c) of three other candidates, with F ~ U(0.5, 1) drawn once per
generation. Each weight is taken from the trial with probability 0.7, and one weight in any case. Values are clipped to
twice the least and twice the largest weight of the layer. A trial replaces its candidate if it is not worse.
As in the published code, a least weight above 0 (or a largest below 0) is halved instead of doubled, and the search
ends when the best candidate has not changed for more than 10 generations.

Differences: the paper replaces a candidate at once, so that later trials of the generation see it; here all trials of a
generation are evaluated before any replaces its candidate. Starting values beyond the bounds are clipped, too. The
search also ends when all candidates are equally good.
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
AT_ONCE_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}  # output of one operation; on a CPU, what fits its cache
KEPT_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # activations that no candidate changes
FEWEST_IMAGES, MOST_IMAGES = 8, 500  # in a chunk
FEW_CANDIDATES = (
    16  # in a chunk, if not all fit: a budget that ends within a chunk loses all of its candidates
)


class ArachneSettings(Section):
    """Settings of Arachne, with the published numbers. `last_layers` and `max_failures` are ours, for small budgets."""

    population: Annotated[int, Field(ge=5)] = Field(100, description="Number of candidates, 5 or more.")
    generations: Positive = Field(
        100, description="Largest number of generations; the budget may end the search earlier."
    )
    patience: Positive = Field(
        10, description="Generations without a better candidate after which the search ends."
    )
    crossover: Fraction = Field(0.7, description="Probability that a weight is taken from the trial, 0 to 1.")
    scale_low: Scale = Field(
        0.5, description="Smallest factor F of the difference of two candidates, 0 to 2."
    )
    scale_high: Scale = Field(1.0, description="Largest factor F, 0 to 2.")
    wrong_weight: Annotated[float, Field(ge=0)] = Field(
        10.0, description="Weight of a failure in the fitness, 0 or more; a correct image has weight 1."
    )
    last_layers: Positive | None = Field(
        None,
        description="Number of layers to search, counted from the last; all by default. Candidates for late layers "
        "are cheaper to evaluate.",
    )
    max_failures: Positive | None = Field(
        None, description="Number of failures to use, with as many correct images; all by default."
    )


def scores(logits_PNK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the score of each image [P, N], float64: 1 if it is classified correctly, else 1 / (loss + 1)."""
    log_p_PNK = logits_PNK.double().log_softmax(-1)
    labels_PN1 = labels_N.expand(len(logits_PNK), -1)[..., None]
    loss_PN = -log_p_PNK.gather(-1, labels_PN1)[..., 0]
    return torch.where(log_p_PNK.argmax(-1) == labels_N, 1.0, 1 / (loss_PN + 1))


class Fitness:
    """Computes the fitness of candidates for the weights at `places`.

    `examples` holds the failures, then the correct images. `wrong_weight` is the weight of a failure. The budget counts
    every image once per candidate.
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
        """Return the fitness [P]; -inf for candidates that the budget did not reach."""
        fitness_P = np.full(len(values_PW), -np.inf)
        for start in range(0, len(values_PW), self.candidates_at_once):
            some_P = slice(start, start + self.candidates_at_once)
            chunk_PW = torch.from_numpy(values_PW[some_P]).to(self.candidates.before_W)
            total_P = torch.zeros(len(chunk_PW), dtype=torch.float64, device=chunk_PW.device)
            for first in range(0, len(self.examples), self.images_at_once):
                if self.budget.over:
                    return fitness_P
                rows = slice(first, min(first + self.images_at_once, len(self.examples)))
                self.budget.spend(images=(rows.stop - first) * len(chunk_PW))
                logits_PNK = self.candidates.logits(self._deployed(rows), chunk_PW)
                total_P += scores(logits_PNK, self.labels_N[rows]) @ self.weights_N[rows]
            # A candidate that overflows to NaN gets the lowest fitness.
            fitness_P[some_P] = total_P.nan_to_num(nan=-np.inf).cpu().numpy()
        return fitness_P

    def _deployed(self, rows: slice) -> Kept:
        """Return what candidates need from the deployed DNN on these images.

        It is kept for the next generation if there is room.
        """
        kept = self._kept.get(rows.start) or self.candidates.keep(self._images(rows))
        if self._keeps:
            self._kept[rows.start] = kept
        return kept

    def _images(self, rows: slice) -> Tensor:
        return self.deployed.normalise(self.examples.images(np.arange(len(self.examples))[rows]))


class SearchState(NamedTuple):
    """The state of a search.

    shares_PW: the candidates, the best first; each weight as a share of the range between its bounds, from 0 to 1.
    fitness_P: their fitness. generation: generations done. unchanged: generations since the best last changed.
    """

    shares_PW: Floats
    fitness_P: Floats
    generation: int
    unchanged: int


def layers_of_weights(module: nn.Module, places: Places) -> Floats:
    """Return lower bound, upper bound, mean and standard deviation [4, W] of each weight's layer."""
    of: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys(places.layers):
        weight = weight_of(module, name).detach().double()
        low, high = float(weight.min()), float(weight.max())
        low, high = (low * 2 if low < 0 else low / 2), (high * 2 if high > 0 else high / 2)
        of[name] = (low, high, float(weight.mean()), float(weight.std(correction=0)))
    return np.array([of[name] for name in places.layers]).T


def start(layers_4W: Floats, *, population: int, seed: int) -> SearchState:
    """Return candidates drawn from the distribution of their layers' weights; their fitness is not known yet."""
    low_W, high_W, mean_W, sd_W = layers_4W
    drawn_PW = keyed_generator("arachne-start", seed).normal(mean_W, sd_W, (population, len(low_W)))
    shares_PW = np.clip((drawn_PW - low_W) / np.where(high_W > low_W, high_W - low_W, 1.0), 0, 1)
    return SearchState(shares_PW, np.full(population, -np.inf), 0, 0)


@dataclass
class Search:
    """Differential evolution of weights within the bounds of their layers.

    fitness: returns the fitness [P] of candidates [P, W]. after: is called with the state after each generation, and
    ends the search if it returns True. All random draws are keyed by seed and generation, so a search that resumes from
    a state gives the same result as one that was never interrupted.
    """

    fitness: Callable[[Floats], Floats]
    layers_4W: Floats
    settings: ArachneSettings
    after: Callable[[SearchState], bool]
    _: KW_ONLY
    seed: int
    state: SearchState

    def values(self, shares_PW: Floats) -> Floats:
        """Return the weights of candidates that are given as shares of the range between their bounds."""
        low_W, high_W, _, _ = self.layers_4W
        return np.asarray(low_W + shares_PW * (high_W - low_W))

    def run(self) -> SearchState:
        """Return the state at the end; its first candidate is the best."""
        ended = False
        if self.state.generation == 0:
            self._advance(self.state.shares_PW, self.fitness(self.values(self.state.shares_PW)), 0)
        while not ended and self.state.generation < self.settings.generations:
            before = self.state
            trials_PW = np.stack([self._trial(p, before.shares_PW) for p in range(len(before.shares_PW))])
            fitness_P = self.fitness(self.values(trials_PW))
            taken_P = fitness_P >= before.fitness_P
            shares_PW = np.where(taken_P[:, None], trials_PW, before.shares_PW)
            fitness_P = np.where(taken_P, fitness_P, before.fitness_P)
            self._advance(shares_PW, fitness_P, before.generation + 1)
            equal = bool(np.isfinite(fitness_P).all()) and fitness_P.std() == 0
            ended = self.after(self.state) or self.state.unchanged > self.settings.patience or equal
        return self.state

    def _advance(self, shares_PW: Floats, fitness_P: Floats, generation: int) -> None:
        best, order = int(fitness_P.argmax()), np.arange(len(fitness_P))
        order[[0, best]] = best, 0
        same = generation > 1 and fitness_P[best] == self.state.fitness_P[0]
        unchanged = self.state.unchanged + 1 if same else 0
        self.state = SearchState(shares_PW[order], fitness_P[order], generation, unchanged)

    def _trial(self, candidate: int, shares_PW: Floats) -> Floats:
        """Return the trial that may replace `candidate`."""
        settings, draw = self.settings, (self.seed, self.state.generation)
        scale = keyed_generator("arachne-scale", *draw).uniform(settings.scale_low, settings.scale_high)
        chance = keyed_generator("arachne-trial", *draw, candidate)
        others = np.delete(np.arange(len(shares_PW)), candidate)
        a_W, b_W, c_W = shares_PW[chance.choice(others, 3, replace=False)]
        taken_W = chance.random(len(a_W)) < settings.crossover
        taken_W[chance.integers(len(a_W))] = True
        trial_W: Floats = np.where(taken_W, np.clip(a_W + scale * (b_W - c_W), 0, 1), shares_PW[candidate])
        return trial_W
