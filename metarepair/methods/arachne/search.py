"""A fitness and a few weights with their bounds in, the best values that differential evolution finds out.

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.3: 100 candidates, 100 generations, each weight started from
N(mean, sd) of its layer; a trial is a + F (b - c) of three others, F ~ U(0.5, 1) once for each generation, taken for
each weight with probability 0.7 and for one in any case, clipped to twice the layer's least and largest weight;
it replaces its candidate if it is not worse. As in the published code, a least weight above 0 (a largest below 0) is
halved instead, and the search ends when the best has not changed for more than 10 generations.

SciPy runs it, with the paper's trials. SciPy's own would start from the best (best1bin) and draw anew what leaves the
bounds. What differs: the paper replaces a candidate at once, so that the next trials of the generation see it; here a
generation is evaluated as one, and replaces after. Starting values beyond the bounds are clipped, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, differential_evolution
from torch import nn

from metarepair.methods.arachne.fitness import Floats
from metarepair.methods.arachne.trace import Places, weight_of
from tasks.keys import keyed_generator

# P candidates, W weights


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Bounds, mean and standard deviation of each weight's layer, [W]."""

    low_W: Floats
    high_W: Floats
    mean_W: Floats
    sd_W: Floats


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """What the search is set to: see ArachneSettings."""

    population: int
    generations: int
    crossover: float
    scale: tuple[float, float]
    patience: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a search stands: candidates in shares of their bounds [P, W], the best first; generations done.

    unchanged: generations since the best last changed.
    """

    shares_PW: Floats
    fitness_P: Floats
    generation: int
    unchanged: int


def layers_of_weights(module: nn.Module, places: Places) -> Layers:
    """Of each weight's layer."""
    of: dict[str, tuple[float, float, float, float]] = {}
    for name in dict.fromkeys(places.layers):
        weight = weight_of(module, name).detach().double()
        low, high = float(weight.min()), float(weight.max())
        low, high = (low * 2 if low < 0 else low / 2), (high * 2 if high > 0 else high / 2)
        of[name] = (low, high, float(weight.mean()), float(weight.std(correction=0)))
    low_W, high_W, mean_W, sd_W = np.array([of[name] for name in places.layers]).T
    return Layers(low_W=low_W, high_W=high_W, mean_W=mean_W, sd_W=sd_W)


class Search:
    """Differential evolution of weights within their layers' bounds.

    fitness: of candidates [P, W]; after: called with the state after each generation, and ends the search by True.
    All chance is keyed by seed and generation, so one that goes on from a state is the one that was not interrupted.
    """

    def __init__(
        self,
        fitness: Callable[[Floats], Floats],
        layers: Layers,
        settings: Evolution,
        after: Callable[[State], bool],
        state: State | None = None,
    ) -> None:
        self.fitness, self.layers, self.settings, self.after = fitness, layers, settings, after
        self.state = state or self._start()
        self._known: Floats | None = None if state is None else -state.fitness_P

    def _start(self) -> State:
        layers, settings = self.layers, self.settings
        shape = (settings.population, len(layers.low_W))
        drawn_PW = keyed_generator("arachne-start", settings.seed).normal(layers.mean_W, layers.sd_W, shape)
        width_W = np.where(layers.high_W > layers.low_W, layers.high_W - layers.low_W, 1.0)
        shares_PW = np.clip((drawn_PW - layers.low_W) / width_W, 0, 1)
        nothing = np.full(settings.population, -np.inf)
        return State(shares_PW=shares_PW, fitness_P=nothing, generation=0, unchanged=0)

    def run(self) -> State:
        """The state at the end; its first candidate is the best."""
        left = self.settings.generations - self.state.generation
        weights = len(self.layers.low_W)
        if left > 0:
            differential_evolution(
                self._energies,  # type: ignore[arg-type]  # its types know no vectorized, and no ending by True
                Bounds(np.zeros(weights), np.ones(weights)),
                strategy=self._trial,
                init=self.state.shares_PW,
                maxiter=left,
                tol=0,
                polish=False,
                callback=self._after_generation,  # type: ignore[arg-type]
                updating="deferred",
                vectorized=True,
            )
        return self.state

    def values(self, shares_PW: Floats) -> Floats:
        """Weights of candidates that are given in shares of the bounds."""
        found: Floats = self.layers.low_W + shares_PW * (self.layers.high_W - self.layers.low_W)
        return found

    def _energies(self, shares_WP: Floats) -> Floats:
        if self._known is not None:  # SciPy asks for the candidates that it starts from
            known, self._known = self._known, None
            return known
        return -self.fitness(self.values(shares_WP.T))

    def _trial(self, candidate: int, shares_PW: Floats, rng: Any = None) -> Floats:
        """A trial in place of `candidate`. SciPy's generator is left alone."""
        seed, generation = self.settings.seed, self.state.generation
        scale = keyed_generator("arachne-scale", seed, generation).uniform(*self.settings.scale)
        chance = keyed_generator("arachne-trial", seed, generation, int(candidate))
        others = np.delete(np.arange(len(shares_PW)), candidate)
        a_W, b_W, c_W = shares_PW[chance.choice(others, 3, replace=False)]
        taken_W = chance.random(len(a_W)) < self.settings.crossover
        taken_W[chance.integers(len(a_W))] = True
        trial_W = np.clip(a_W + scale * (b_W - c_W), 0, 1)
        found: Floats = np.where(taken_W, trial_W, shares_PW[candidate])
        return found

    def _after_generation(self, intermediate_result: Any) -> bool:
        fitness_P = -np.asarray(intermediate_result.population_energies)
        same = self.state.generation > 0 and fitness_P[0] == self.state.fitness_P[0]
        self.state = State(
            shares_PW=np.array(intermediate_result.population),
            fitness_P=fitness_P,
            generation=self.state.generation + 1,
            unchanged=self.state.unchanged + 1 if same else 0,
        )
        return self.after(self.state) or self.state.unchanged > self.settings.patience
