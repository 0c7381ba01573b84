"""Failures and correct images in, a DNN with better values for the few weights that are most to blame out.

Source: Sohn, Kang and Yoo 2022 (Arachne: Search-Based Repair of Deep Neural Networks, TOSEM). Localisation is in
localise.py, the search in search.py, and how all candidates are evaluated at once in
replay.py. Both see D_collect's learning part and as many clean training images that the DNN classifies rightly;
validation is reported and chooses nothing. The search ends with its generations, with no better best, or with the
budget, in which a generation counts as a step and each candidate sees each image. Where no candidate is better than the
deployed weights, these stay.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from metarepair.meta_test import RepairData, accuracy_on
from metarepair.methods.arachne.fitness import Fitness
from metarepair.methods.arachne.localise import BudgetOverError, blame, correct_rows, pareto_front
from metarepair.methods.arachne.search import Evolution, Search, State, layers_of_weights
from metarepair.methods.arachne.trace import Places, layers_of
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.examples import clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from metarepair.section import Fraction, Positive, Section
from tasks.errors import ConfigError
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints

# N images, P candidates, W weights

CHECKPOINT = "arachne.safetensors"
CHECKPOINT_S = 60.0
SAID_S = 15.0  # between lines of progress


class ArachneSettings(Section):
    """Published; last_layers and max_failures are ours, for small budgets."""

    population: Annotated[int, Field(ge=5)] = Field(100, description="Candidates, 5 or more.")
    generations: Positive = Field(
        100, description="Generations at most; the budget may end the search before."
    )
    patience: Positive = Field(10, description="Generations without a better candidate, after which it ends.")
    crossover: Fraction = Field(0.7, description="Probability that a weight is taken from a trial, 0 to 1.")
    scale_low: Annotated[float, Field(ge=0, le=2)] = Field(
        0.5, description="Least factor of a difference, 0 to 2."
    )
    scale_high: Annotated[float, Field(ge=0, le=2)] = Field(1.0, description="Largest factor of it, 0 to 2.")
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


@register
class Arachne(Method):
    """A few weights of dense and convolution layers."""

    name = "arachne"
    words = "Arachne"
    uses = ("failures", "clean")
    changes = ("weights",)
    cost = "six passes over D_collect and as many correct images, then population × generations of them"
    Settings = ArachneSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        if not layers_of(module):
            raise ConfigError(
                "arachne changes weights of dense and convolution layers, and this DNN has none with a weight of its "
                "own that requires_grad (torch.nn.Linear, Conv1d, Conv2d or Conv3d). Leave arachne out."
            )
        if settings.scale_low > settings.scale_high:
            raise ConfigError(
                f"methods.arachne.scale_low={settings.scale_low} is above scale_high={settings.scale_high}. Give "
                "the smaller one first: published are 0.5 and 1.0."
            )

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        settings = context.settings
        assert isinstance(settings, ArachneSettings)
        self.check(deployed.module, settings)
        return _Repair(deployed, data, context, settings).run()


class _Repair:
    """One repair, from the failures to the module with better weights."""

    def __init__(
        self, deployed: DeployedModel, data: RepairData, context: MethodContext, settings: ArachneSettings
    ) -> None:
        self.deployed, self.data, self.context, self.settings = deployed, data, context, settings
        self.clean = clean_beside_failures("arachne", data)
        self.failures = _first(data.learn, settings.max_failures, context.seed)
        self._saved_at = self._said_at = time.monotonic()

    def run(self) -> RepairedModel:
        module = self.deployed.module.eval()
        found = self._resumed()
        try:
            places, rows, state = found or self._localise()
        except BudgetOverError:
            return self._result(
                ("the budget was over before the weights to blame were found: none is changed",)
            )
        correct = self.clean.take(rows)
        fitness = Fitness(
            self.deployed,
            places,
            self.failures,
            correct,
            wrong_weight=self.settings.wrong_weight,
            budget=self.context.budget,
        )
        before = self._validation()
        (own,) = fitness(places.values(module).double().cpu().numpy()[None])
        search = self._search(fitness, places, rows, state)
        end = search.run()
        better = bool(end.fitness_P[0] > own)
        if better:
            values_W = torch.from_numpy(search.values(end.shares_PW)[0]).to(fitness.replay.before_W)
            places.fill(module, values_W)
        where = ", ".join(f"{name} ({len(places.of(name))})" for name in dict.fromkeys(places.layers))
        what = "changed" if better else "searched, and left as they were, as no candidate was better"
        return self._result(
            (
                f"{len(places)} weights {what}: {where}",
                f"fitness {own:.1f} to {max(end.fitness_P[0], own):.1f} in {end.generation} generations",
                f"accuracy on validation, which chose nothing, {before:.1%} to {self._validation():.1%}",
            )
        )

    def _localise(self) -> tuple[Places, Ints, State | None]:
        """The weights to blame, and the rows of correct images that they were found with."""
        budget = self.context.budget
        rows = correct_rows(
            self.deployed, self.clean, count=len(self.failures), seed=self.context.seed, budget=budget
        )
        correct = self.clean.take(rows)
        of_failures, of_correct = (
            blame(self.deployed, images, budget, last_layers=self.settings.last_layers)
            for images in (self.failures, correct)
        )
        places = pareto_front(of_failures.over(of_correct))
        self.context.say(f"arachne: {len(places)} weights of {len(set(places.layers))} layers are to blame")
        self._save(places, rows, None)
        return places, rows, None

    def _search(self, fitness: Fitness, places: Places, rows: Ints, state: State | None) -> Search:
        settings, context = self.settings, self.context

        def after(state: State) -> bool:
            context.budget.spend(steps=1)
            self._say(state)
            if time.monotonic() - self._saved_at >= CHECKPOINT_S:
                self._save(places, rows, state)
            return context.budget.over

        evolution = Evolution(
            population=settings.population,
            generations=settings.generations,
            crossover=settings.crossover,
            scale=(settings.scale_low, settings.scale_high),
            patience=settings.patience,
            seed=context.seed,
        )
        return Search(fitness, layers_of_weights(self.deployed.module, places), evolution, after, state)

    def _say(self, state: State) -> None:
        now, budget = time.monotonic(), self.context.budget
        if now - self._said_at < SAID_S:
            return
        self._said_at = now
        share = max(state.generation / self.settings.generations, budget.share)
        self.context.say(
            f"arachne: generation {state.generation} of {self.settings.generations}, best fitness "
            f"{state.fitness_P[0]:.1f}, {budget.seconds / share - budget.seconds:.0f} s left at most"
        )

    def _validation(self) -> float:
        module = self.deployed.module
        return accuracy_on(
            self.deployed, dict(module.named_parameters()), dict(module.named_buffers()), self.data.validation
        )

    def _result(self, notes: tuple[str, ...]) -> RepairedModel:
        return repaired_from("arachne", self.deployed.module, self.context.budget, notes=notes)

    def _save(self, places: Places, rows: Ints, state: State | None) -> None:
        if self.context.folder is None:
            return
        names = list(layers_of(self.deployed.module))
        arrays: dict[str, Any] = {
            "layers": np.array([names.index(name) for name in places.layers]),
            "flat": places.flat_W,
            "rows": rows,
            "spent": np.array(list(self.context.budget.spent.values())),
        }
        if state is not None:
            arrays |= {
                "shares": state.shares_PW,
                "fitness": state.fitness_P,
                "count": np.array([state.generation, state.unchanged]),
            }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        save_weights(self.context.folder / CHECKPOINT, tensors, {})
        self._saved_at = time.monotonic()

    def _resumed(self) -> tuple[Places, Ints, State | None] | None:
        """What an interrupted repair had found, and where its search stood."""
        folder = self.context.folder
        if folder is None or not (folder / CHECKPOINT).is_file():
            return None
        found = {name: tensor.numpy() for name, tensor in read_tensors(folder / CHECKPOINT).items()}
        names = list(layers_of(self.deployed.module))
        places = Places(layers=tuple(names[i] for i in found["layers"]), flat_W=found["flat"])
        seconds, images, steps = found["spent"].tolist()
        self.context.budget.go_on(seconds=seconds, images=images, steps=steps)
        state = None
        if "shares" in found:
            generation, unchanged = found["count"].tolist()
            state = State(
                shares_PW=found["shares"],
                fitness_P=found["fitness"],
                generation=generation,
                unchanged=unchanged,
            )
        self.context.say(f"arachne: goes on from generation {state.generation if state else 0}")
        return places, found["rows"], state


def _first(failures: Failures, most: int | None, seed: int) -> Failures:
    """All failures, or `most` of them in an order of chance."""
    if most is None or len(failures) <= most:
        return replace(failures)
    return failures.take(keyed_generator("arachne-failures", seed).permutation(len(failures))[:most])
