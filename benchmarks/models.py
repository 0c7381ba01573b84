"""Measure the overhead of our wrappers of a timm model against calling the model directly.

    plain        the module under torch.inference_mode, after (x/255 − mean)/std written in three lines
    deployed     DeployedModel.logits: what mining, evaluation and reports call
    again        `plain` once more: shows how much of a difference is noise of the machine
    module       the module on images that are already normalised
    functional   FunctionalNet.logits on the same images, with given parameters and buffers, as for repaired DNNs

All ways use the same model object, with random weights. Images are 32 × 32; `cifar` is the small stem, whose feature
maps have 16 times the pixels. Command: python -m benchmarks.models [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Figure, Times, interleave, machine, parser, publish
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.types import InnerRule
from metarepair.models.build import DeployedModel, build_model
from metarepair.models.stems import Stem

# B images of a batch, H W C pixels, K classes
Way = Callable[[], Tensor]

FAMILIES = ("densenet121", "convnext_tiny", "van_b0")
STEMS: tuple[Stem, ...] = ("imagenet", "cifar")
CLASSES, MEAN, STD = 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
MEANING = {
    "overhead": "extra time of DeployedModel.logits over the plain model, as a fraction (the goal is under 0.02)",
    "overhead_functional": "the same for FunctionalNet.logits over the module",
    "noise": "the same for the plain model over itself",
    "images_per_s": "speed of DeployedModel.logits",
    "logits_rel_diff": "largest norm of the difference from the plain model's logits, relative to theirs",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: images in a forward pass, by stem; rounds."""

    batch: Mapping[Stem, int]
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        return Sizes(batch={"imagenet": 2, "cifar": 1}, rounds=2)
    return Sizes(batch={"imagenet": 200, "cifar": 20}, rounds=9 if quick else 41)


def ways(name: str, stem: Stem, batch: int, device: torch.device) -> dict[str, Way]:
    """Return the ways to run one model, all with the same object and images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model(name, CLASSES, stem=stem).to(device).eval()
    deployed = DeployedModel(name=name, module=module, num_classes=CLASSES, mean=MEAN, std=STD)
    net = FunctionalNet(module, InnerRule(steps=1, rate=0.1, batch_norm="frozen"))
    parameters, buffers = net.parameters(), net.buffers()
    images_BHWC_u8 = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    x_BCHW = deployed.normalise(images_BHWC_u8)

    @torch.inference_mode()
    def plain() -> Tensor:
        logits_BK: Tensor = module(plainly(images_BHWC_u8, device)).cpu()
        return logits_BK

    @torch.inference_mode()
    def alone() -> Tensor:
        logits_BK: Tensor = module(x_BCHW)
        return logits_BK

    return {
        "plain": plain,
        "deployed": lambda: deployed.logits(images_BHWC_u8),
        "again": plain,
        "module": alone,
        "functional": lambda: net.logits(parameters, buffers, x_BCHW),
    }


def plainly(images_BHWC_u8: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return the normalised images [B, C, H, W], computed in the straightforward way."""
    x_BCHW = torch.from_numpy(images_BHWC_u8).to(device).permute(0, 3, 1, 2).float() / 255
    mean_CHW, std_CHW = (torch.tensor(c, device=device).view(3, 1, 1) for c in (MEAN, STD))
    return (x_BCHW - mean_CHW) / std_CHW


def measure(size: Sizes, device: torch.device) -> tuple[dict[str, Figure], Times]:
    """Return all figures by model and stem, and the times they are computed from."""
    columns: dict[str, dict[str, float | str]] = {key: {} for key in MEANING}
    seconds: dict[str, list[float]] = {}
    finish = torch.cuda.synchronize if device.type == "cuda" else None
    for name, stem in ((name, stem) for stem in STEMS for name in FAMILIES):
        row = name if stem == "imagenet" else f"{name} {stem}"
        print(row)
        batch = size.batch[stem]
        found = ways(name, stem, batch, device)
        logits = {way: run().cpu() for way, run in found.items()}  # also warms up: kernels are chosen
        turns = {way: (lambda _, run=run: run()) for way, run in found.items()}
        times = interleave(turns, rounds=size.rounds, finish=finish)
        seconds |= {f"{row} {way}": rounds for way, rounds in times.rounds_s.items()}
        columns["overhead"][row] = times.ratio("deployed", "plain") - 1
        columns["overhead_functional"][row] = times.ratio("functional", "module") - 1
        columns["noise"][row] = times.ratio("again", "plain") - 1
        columns["images_per_s"][row] = batch / times.median("deployed")
        columns["logits_rel_diff"][row] = max(
            float((other - logits["plain"]).norm() / logits["plain"].norm()) for other in logits.values()
        )
    return dict(columns), Times(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = options.parse_args(arguments)
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = machine("metarepair", "torch", "timm", "numpy") | {"device": given.device, "batch": size.batch}
    figures, times = measure(size, torch.device(given.device))
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
