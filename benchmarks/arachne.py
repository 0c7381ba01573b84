"""Time Arachne's evaluation of 100 candidates against a loop that runs the DNN once for each candidate.

    ours    metarepair.methods.arachne.search: activations that no candidate changes are kept between generations
    first   a first generation, including the work done once: recording the operations, computing what is kept
    loop    sets the weights, runs the whole DNN on all images, computes the fitness; few candidates, the time scaled up

Candidates change eight weights of the classifier, or of the last convolution, of the shipped ResNet-8 and of
DenseNet-121 (stem for 32 px, random weights), on the sample. The goals are 50 times the loop's speed for a classifier
and 10 times for a late convolution. If a patch is in the first layers, there is little to keep and both do the same
arithmetic; the row `resnet8 stem` shows this for information.
Command: python -m benchmarks.arachne [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.measure import Figure, Times, interleave, machine, parser, publish
from metarepair.data.clean_images import CleanImages
from metarepair.methods.arachne.localise import Places, weight_of
from metarepair.methods.arachne.search import Fitness, Floats, scores
from metarepair.methods.budget import Budget
from metarepair.methods.examples import Examples
from metarepair.models.build import DeployedModel, build_model, load_deployed
from tasks.datasets import dataset_info, load_dataset

# P candidates, W weights

DATA, SMALL = "cifar10_sample", ("resnet8_cifar", "shipped:resnet8_cifar10")
CASES = {
    "resnet8 dense": ("resnet8", "fc"),
    "resnet8 conv": ("resnet8", "stages.2.conv2"),
    "densenet121 dense": ("densenet121", "classifier"),
    "densenet121 conv": ("densenet121", "features.denseblock4.denselayer16.conv2"),
}
FIRST_LAYER = {"resnet8 stem": ("resnet8", "stem.0")}
WEIGHTS, WRONG_WEIGHT = 8, 10.0
MEANING = {
    "ratio": "time of the loop over ours, the least of the four late cases (more is better; the goal is 10)",
    "ratios": "the same by case (the goal is 50 for a dense layer, 10 for a convolution)",
    "ratios_first": "time of the loop over that of a first generation, including the work done once",
    "candidates_per_s": "candidates that ours evaluates per second",
    "fitness_rel_diff": "largest relative difference of a candidate's fitness between the two (at most 1e-3)",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: candidates in a generation, images and looped candidates by DNN, rounds."""

    candidates: int
    images: Mapping[str, int]
    looped: Mapping[str, int]
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        few = {"resnet8": 4, "densenet121": 2}
        return Sizes(candidates=3, images=few, looped=dict.fromkeys(few, 1), rounds=1)
    return Sizes(
        candidates=100,
        images={"resnet8": 200, "densenet121": 20},
        looped={"resnet8": 4, "densenet121": 1},
        rounds=3 if quick else 11,
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A DNN, the weights to search, two halves of the images, and candidates [P, W]."""

    deployed: DeployedModel
    places: Places
    images: tuple[CleanImages, CleanImages]
    values_PW: Floats

    def fitness(self) -> Fitness:
        """Return our fitness function, with nothing kept yet."""
        return Fitness(self.deployed, self.places, Examples(*self.images), WRONG_WEIGHT, Budget())

    @torch.no_grad()
    def loop(self, number: int) -> Floats:
        """Return the fitness of the first `number` candidates by a straightforward loop."""
        module = copy.deepcopy(self.deployed.module)
        found = []
        for values_W in self.values_PW[:number]:
            self.places.fill(module, torch.from_numpy(values_W))
            total = 0.0
            for images, weight in zip(self.images, (WRONG_WEIGHT, 1.0), strict=True):
                logits = module(self.deployed.normalise(images.images_NHWC))
                labels = torch.from_numpy(images.labels_N).to(logits.device)
                total += weight * float(scores(logits[None], labels).sum())
            found.append(total)
        return np.array(found)


def case_of(deployed: DeployedModel, layer: str, size: Sizes, images: int) -> Case:
    """Choose random weights of a layer, and draw candidates with the layer's mean and spread."""
    weight = weight_of(deployed.module, layer).detach().cpu().double()
    generator = np.random.default_rng(0)
    flat_W = generator.choice(weight.numel(), WEIGHTS, replace=False)
    values_PW = generator.normal(float(weight.mean()), float(weight.std()), (size.candidates, WEIGHTS))
    data = load_dataset(DATA, "train")
    halves = tuple(
        CleanImages(
            images_NHWC=np.asarray(data.images_NHWC[start:images:2]),
            labels_N=data.labels_N[start:images:2],
        )
        for start in (0, 1)
    )
    return Case(
        deployed=deployed,
        places=Places(layers=(layer,) * WEIGHTS, flat_W=flat_W),
        images=(halves[0], halves[1]),
        values_PW=values_PW,
    )


def dnns(device: torch.device) -> dict[str, DeployedModel]:
    """Return the DNNs by their names in the figures."""
    small = load_deployed(*SMALL, dataset_info(DATA), device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model("densenet121", small.num_classes, stem="cifar").to(device).eval()
    return {"densenet121": replace(small, name="densenet121", module=module), "resnet8": small}


def measure(size: Sizes, device: torch.device) -> tuple[dict[str, Figure], Times]:
    """Return all figures, and the times they are computed from."""
    found = dnns(device)
    ways: dict[str, Callable[[int], object]] = {}
    apart, more = 0.0, {}
    for name, (dnn, layer) in {**CASES, **FIRST_LAYER}.items():
        case, looped = case_of(found[dnn], layer, size, size.images[dnn]), size.looped[dnn]
        kept = case.fitness()
        whole, loop = kept(case.values_PW), case.loop(looped)  # also warms up: kernels are chosen
        apart = max(apart, float((np.abs(whole[:looped] - loop) / loop).max()))
        more[name] = size.candidates / looped
        ways[f"{name} ours"] = lambda _, kept=kept, case=case: kept(case.values_PW)  # type: ignore[misc]
        ways[f"{name} loop"] = lambda _, case=case, looped=looped: case.loop(looped)  # type: ignore[misc]
        if name in CASES:
            ways[f"{name} first"] = lambda _, case=case: case.fitness()(case.values_PW)  # type: ignore[misc]
    finish = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(ways, rounds=size.rounds, finish=finish)
    ratios = {name: more[name] * times.ratio(f"{name} loop", f"{name} ours") for name in more}
    figures: dict[str, Figure] = {
        "ratio": min(ratios[name] for name in CASES),
        "ratios": ratios,
        "ratios_first": {n: more[n] * times.ratio(f"{n} loop", f"{n} first") for n in CASES},
        "candidates_per_s": {name: size.candidates / times.median(f"{name} ours") for name in more},
        "fitness_rel_diff": apart,
    }
    return figures, times


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = options.parse_args(arguments)
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = machine("metarepair", "torch", "timm", "numpy") | {"device": given.device} | vars(size)
    figures, times = measure(size, torch.device(given.device))
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
