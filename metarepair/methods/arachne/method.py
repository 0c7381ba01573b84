"""Arachne: find the few weights that are most to blame for the failures, and search better values for them.

Localisation scores every weight of the dense and convolution layers by how much it contributes to the failures, but not
to images that the DNN classifies correctly, and keeps the Pareto front. Differential evolution then searches values for
these weights that correct failures without breaking correct images. No other weight changes. If no candidate is better
than the deployed weights, those stay.
Both steps see the learning part of D_collect and as many correctly classified clean training images. Accuracy on
validation is reported and chooses nothing. The search ends after its generations, after `patience` generations without
improvement, or with the budget; the budget counts a generation as a step, and every image for every candidate.
Source: Sohn, Kang and Yoo 2022 (Arachne: Search-Based Repair of Deep Neural Networks, TOSEM).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import RepairData
from metarepair.methods.arachne import localise
from metarepair.methods.arachne.search import (
    ArachneSettings,
    Fitness,
    Search,
    SearchState,
    layers_of_weights,
    start,
)
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.examples import Examples, clean_beside_failures
from metarepair.methods.registry import register
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel, read_tensors, save_weights
from tasks.errors import ConfigError
from tasks.keys import keyed_generator

CHECKPOINT = "arachne.safetensors"
CHECKPOINT_S = 60.0
SAID_S = 15.0  # between log lines
# Arrays: layers and places of the weights to blame, rows of correct images, and the state of the search once it runs.
Found = dict[str, Any]


@register
class Arachne(Method):
    """Changes a few weights of dense and convolution layers."""

    name = "arachne"
    words = "Arachne"
    uses = ("failures", "clean")
    changes = ("weights",)
    cost = "six passes over D_collect and as many correct images, then population × generations passes"
    Settings = ArachneSettings

    def check(self, module: nn.Module, settings: Any) -> None:
        if not localise.layers_of(module):
            raise ConfigError(
                "arachne changes weights of dense and convolution layers (torch.nn.Linear, Conv1d, Conv2d or Conv3d), "
                "and this DNN has none with a weight of its own and requires_grad=True. Leave arachne out."
            )
        if settings.scale_low > settings.scale_high:
            raise ConfigError(
                f"methods.arachne.scale_low={settings.scale_low} is above scale_high={settings.scale_high}. Set "
                "scale_low to at most scale_high; published are 0.5 and 1.0."
            )

    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:
        self.check(deployed.module, context.settings)
        repair = _Repair(deployed, data, context)
        try:
            notes = repair.run()
        except localise.BudgetOverError:
            notes = ("the budget ran out before the weights to blame were found: no weight is changed",)
        return repaired_from("arachne", deployed.module, context.budget, notes=notes)


class _Repair:
    """One repair: localisation, search, and the better weights put into the module."""

    def __init__(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> None:
        assert isinstance(context.settings, ArachneSettings)
        self.deployed, self.module, self.validation = deployed, deployed.module.eval(), data.validation
        self.context, self.settings, self.budget = context, context.settings, context.budget
        self.clean, self.failures = clean_beside_failures("arachne", data), data.learn
        if self.settings.max_failures is not None and len(data.learn) > self.settings.max_failures:
            order = keyed_generator("arachne-failures", context.seed).permutation(len(data.learn))
            self.failures = data.learn.take(order[: self.settings.max_failures])
        self.layers = list(localise.layers_of(self.module))
        self._saved_at = self._said_at = time.monotonic()

    def run(self) -> tuple[str, ...]:
        """Change the module, and return notes on what was done."""
        found = self._resumed() or self._localised()
        places = localise.Places(layers=tuple(self.layers[i] for i in found["layers"]), flat_W=found["flat"])
        examples = Examples(self.failures, self.clean.take(found["rows"]))
        fitness = Fitness(self.deployed, places, examples, self.settings.wrong_weight, self.budget)
        before = self._accuracy()
        (own,) = fitness(places.values(self.module).double().cpu().numpy()[None])
        search = self._search(fitness, places, found)
        end = search.run()
        better = bool(end.fitness_P[0] > own)
        if better:
            values_W = torch.from_numpy(search.values(end.shares_PW)[0])
            places.fill(self.module, values_W.to(fitness.candidates.before_W))
        where = ", ".join(f"{name} ({len(places.of(name))})" for name in dict.fromkeys(places.layers))
        what = "changed" if better else "searched and left unchanged, because no candidate was better"
        return (
            f"{len(places)} weights {what}: {where}",
            f"fitness {own:.1f} to {max(end.fitness_P[0], own):.1f} in {end.generation} generations",
            f"accuracy on validation (which chose nothing) {before:.1%} to {self._accuracy():.1%}",
            *filter(None, [fitness.candidates.note]),
        )

    def _localised(self) -> Found:
        deployed, budget, seed = self.deployed, self.budget, self.context.seed
        rows = localise.correct_rows(deployed, self.clean, count=len(self.failures), seed=seed, budget=budget)
        failures, correct = (
            localise.blame(deployed, images, budget, last_layers=self.settings.last_layers)
            for images in (self.failures, self.clean.take(rows))
        )
        places = localise.pareto_front(localise.against(failures, correct))
        self.context.say(f"arachne: {len(places)} weights of {len(set(places.layers))} layers are to blame")
        layers = [self.layers.index(name) for name in places.layers]
        self._save(found := {"layers": layers, "flat": places.flat_W, "rows": rows})
        return found

    def _search(self, fitness: Fitness, places: localise.Places, found: Found) -> Search:
        settings, seed, budget = self.settings, self.context.seed, self.budget

        def after(state: SearchState) -> bool:
            budget.spend(steps=1)
            if time.monotonic() - self._said_at >= SAID_S:
                self._said_at = time.monotonic()
                share = max(state.generation / settings.generations, budget.share)
                self.context.say(
                    f"arachne: generation {state.generation} of {settings.generations}, best fitness "
                    f"{state.fitness_P[0]:.1f}, at most {budget.seconds / share - budget.seconds:.0f} s left"
                )
            if time.monotonic() - self._saved_at >= CHECKPOINT_S:
                shares_PW, fitness_P, *count = state
                self._save({**found, "shares": shares_PW, "fitness": fitness_P, "count": count})
            return budget.over

        layers_4W = layers_of_weights(self.module, places)
        state = start(layers_4W, population=settings.population, seed=seed)
        if "shares" in found:
            state = SearchState(found["shares"], found["fitness"], *found["count"].tolist())
        return Search(fitness, layers_4W, settings, after, seed=seed, state=state)

    def _accuracy(self) -> float:
        parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        return accuracy_on(self.deployed, parameters, dict(self.module.named_buffers()), self.validation)

    def _save(self, found: Found) -> None:
        if self.context.folder is not None:
            arrays = {**found, "spent": list(self.budget.spent.values())}
            tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
            save_weights(self.context.folder / CHECKPOINT, tensors, {})
            self._saved_at = time.monotonic()

    def _resumed(self) -> Found | None:
        """Return what an interrupted repair saved; None if there is no checkpoint."""
        if self.context.folder is None or not (self.context.folder / CHECKPOINT).is_file():
            return None
        tensors = read_tensors(self.context.folder / CHECKPOINT)
        found = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.budget.go_on(**dict(zip(self.budget.spent, found["spent"].tolist(), strict=False)))
        generation = found["count"].tolist()[0] if "count" in found else 0
        self.context.say(f"arachne: resumes from generation {generation}")
        return found
