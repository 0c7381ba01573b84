"""Measure how many variants per second SENSEI's search evaluates, batched against one by one.

    batched      metarepair.methods.sensei.method: all variants of a batch by one resampling, then through the DNN
    one_by_one   each variant of each image by torchvision's `affine`, then through the DNN alone
    resampled    only the resampling of `batched`, for information
    affine       only torchvision's `affine` of `one_by_one`, for information

DenseNet-121 (the paper's, random weights, 32 px) and the shipped ResNet-8, on the sample, with the published 10
variants per image; `one_by_one` gets fewer images, so that the times are similar. A DNN of few large layers is limited
by arithmetic in both ways; one of many small layers is limited by the calls that batching saves.
Command: python -m benchmarks.sensei [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from benchmarks.measure import Figure, Times, interleave, machine, parser, publish
from metarepair.methods.sensei.method import SenseiSettings, variant_losses
from metarepair.methods.sensei.populations import Populations
from metarepair.methods.sensei.variants import variants
from metarepair.models.build import DeployedModel, build_model, load_deployed
from tasks.datasets import dataset_info, load_dataset

# B images, V variants of an image, G genes, H W C pixels

DATA, SMALL, GENES = "cifar10_sample", ("resnet8_cifar", "shipped:resnet8_cifar10"), SenseiSettings().genes
MEANING = {
    "ratio": "variants/s batched over one by one, for DenseNet-121 (more is better; the goal is 10)",
    "ratio_resnet8": "the same for ResNet-8",
    "ratio_resampling": "the same for the transformations alone",
    "variants_per_s": "variants transformed (and evaluated, where a DNN is used) per second",
    "loss_diff": "largest difference of a variant's loss between the two ways (at most 1e-3)",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: images in a batch and one by one, variants of each, rounds."""

    batched: int
    alone: int
    variants: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds."""
    if smoke:
        return Sizes(batched=4, alone=2, variants=3, rounds=2)
    return Sizes(batched=200, alone=10, variants=SenseiSettings().variants, rounds=5 if quick else 21)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Images with labels, and the transformation vectors of their variants."""

    images_BHWC_u8: NDArray[np.uint8]
    labels_B: Tensor
    vectors_BVG: NDArray[np.float32]

    def head(self, number: int) -> Work:
        """Return only the first `number` images."""
        return Work(
            images_BHWC_u8=self.images_BHWC_u8[:number],
            labels_B=self.labels_B[:number],
            vectors_BVG=self.vectors_BVG[:number],
        )


def work_of(size: Sizes, device: torch.device) -> Work:
    """Return the first images of the sample, with random populations."""
    data = load_dataset(DATA, "train").head(size.batched)
    populations = Populations(GENES, images=size.batched, keep=size.variants, seed=0)
    return Work(
        images_BHWC_u8=np.asarray(data.images_NHWC),
        labels_B=torch.from_numpy(np.asarray(data.labels_N, np.int64)).to(device),
        vectors_BVG=populations.vectors_NPG,
    )


def batched(deployed: DeployedModel, work: Work) -> Tensor:
    """Return the loss of each variant [B, V], as the method computes it."""
    return variant_losses(
        deployed, deployed.module, work.images_BHWC_u8, work.labels_B, work.vectors_BVG, genes=GENES
    )


@torch.no_grad()
def one_by_one(deployed: DeployedModel, work: Work) -> Tensor:
    """Return the same, computed by a loop over images and variants."""
    losses_BV = torch.empty(work.vectors_BVG.shape[:2])
    for row, vectors_VG in enumerate(work.vectors_BVG.tolist()):
        image_CHW = _image(deployed, work, row)
        for number, vector in enumerate(vectors_VG):
            x_BHWC = affine(image_CHW, vector).permute(1, 2, 0)[None]
            logits = deployed.module(deployed.normalise(x_BHWC))
            losses_BV[row, number] = F.cross_entropy(logits, work.labels_B[row : row + 1])
    return losses_BV


def affine(image_CHW: Tensor, vector: Sequence[float]) -> Tensor:
    """Return a variant, made with torchvision in the straightforward way."""
    rotation, x, y, shear = vector
    made: Tensor = V.affine(
        image_CHW,
        angle=rotation,
        translate=[x, y],
        scale=1.0,
        shear=[math.degrees(math.atan(shear)), 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    return made


def _image(deployed: DeployedModel, work: Work, row: int) -> Tensor:
    pixels = torch.from_numpy(work.images_BHWC_u8[row])
    return pixels.to(deployed.device, deployed.dtype).permute(2, 0, 1)


def _resampled(deployed: DeployedModel, work: Work) -> Tensor:
    images_BCHW = (
        torch.from_numpy(work.images_BHWC_u8).to(deployed.device, deployed.dtype).permute(0, 3, 1, 2)
    )
    return variants(images_BCHW, torch.from_numpy(work.vectors_BVG).to(deployed.device), GENES)


def _affine_of_all(deployed: DeployedModel, work: Work) -> None:
    for row, vectors_VG in enumerate(work.vectors_BVG.tolist()):
        image_CHW = _image(deployed, work, row)
        for vector in vectors_VG:
            affine(image_CHW, vector)


def dnns(device: torch.device) -> dict[str, DeployedModel]:
    """Return the DNNs by their names in the figures."""
    small = load_deployed(*SMALL, dataset_info(DATA), device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model("densenet121", small.num_classes).to(device).eval()
    return {"densenet121": replace(small, name="densenet121", module=module), "resnet8": small}


def measure(size: Sizes, device: torch.device) -> tuple[dict[str, Figure], Times]:
    """Return all figures, and the times they are computed from."""
    found = dnns(device)
    many = work_of(size, device)
    few = many.head(size.alone)
    ways: dict[str, Callable[[int], object]] = {
        "resampled": lambda _: _resampled(found["resnet8"], many),
        "affine": lambda _: _affine_of_all(found["resnet8"], few),
    }
    apart = 0.0
    for name, net in found.items():
        whole, alone = batched(net, few), one_by_one(net, few)  # also warms up: kernels are chosen
        apart = max(apart, float((whole.cpu() - alone).abs().max()))
        ways[f"{name} batched"] = partial(_ignoring_round, batched, net, many)
        ways[f"{name} one_by_one"] = partial(_ignoring_round, one_by_one, net, few)
    finish = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(ways, rounds=size.rounds, finish=finish)
    more = size.batched / size.alone
    done = {name: size.alone if name.endswith(("one_by_one", "affine")) else size.batched for name in ways}
    figures: dict[str, Figure] = {
        "ratio": more * times.ratio("densenet121 one_by_one", "densenet121 batched"),
        "ratio_resnet8": more * times.ratio("resnet8 one_by_one", "resnet8 batched"),
        "ratio_resampling": more * times.ratio("affine", "resampled"),
        "variants_per_s": {name: done[name] * size.variants / times.median(name) for name in ways},
        "loss_diff": apart,
    }
    return figures, times


def _ignoring_round(
    way: Callable[[DeployedModel, Work], Tensor], deployed: DeployedModel, work: Work, _: int
) -> Tensor:
    return way(deployed, work)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = options.parse_args(arguments)
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = (
        machine("metarepair", "torch", "torchvision", "timm", "numpy") | {"device": given.device} | vars(size)
    )
    figures, times = measure(size, torch.device(given.device))
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
