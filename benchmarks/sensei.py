"""Images and transformation vectors in, losses of variants per second out: SENSEI's search batched against one by one.

    batched      metarepair.methods.sensei: all variants of a batch by one resampling, then through the DNN
    one_by_one   each variant of each image by torchvision's `affine`, and the DNN on it alone
    resampled    the resampling of `batched` alone, for information
    affine       torchvision's of `one_by_one` alone, for information

The shipped ResNet-8 on its sample, 10 variants of an image, which is the published number. Batched and one by one
are different numbers of images for a like time. Command: python -m benchmarks.sensei [--quick] [--json FILE] [--device cuda]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from benchmarks.measure import Figure, Times, interleave, machine, parser, publish
from metarepair.methods.sensei import AT_ONCE, SenseiSettings, variant_losses
from metarepair.methods.sensei_populations import Populations
from metarepair.methods.sensei_variants import variants
from metarepair.models.build import DeployedModel, load_deployed
from tasks.datasets import dataset_info, load_dataset

# B images, V variants of an image, G genes, H W C pixels

DATA, DEPLOYED, GENES = "cifar10_sample", ("resnet8_cifar", "shipped:resnet8_cifar10"), SenseiSettings().genes
MEANING = {
    "ratio": "variants/s batched over one by one (more is better; the goal is 10)",
    "ratio_resampling": "the same of the transformations alone",
    "variants_per_s": "variants transformed, and judged where a DNN takes part, in a second",
    "loss_diff": "largest difference of a variant's loss between the two ways (at most 1e-3)",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: images by whether they are batched, variants of each, rounds."""

    batched: int
    alone: int
    variants: int
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """The sizes are the same for --quick, which only repeats less."""
    if smoke:
        return Sizes(batched=4, alone=2, variants=3, rounds=2)
    return Sizes(batched=200, alone=10, variants=SenseiSettings().variants, rounds=5 if quick else 21)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Images with labels, and their variants' vectors."""

    images_BHWC_u8: NDArray[np.uint8]
    labels_B: Tensor
    vectors_BVG: NDArray[np.float32]

    def head(self, number: int) -> Work:
        """The first images alone."""
        return Work(
            images_BHWC_u8=self.images_BHWC_u8[:number],
            labels_B=self.labels_B[:number],
            vectors_BVG=self.vectors_BVG[:number],
        )


def work_of(size: Sizes, device: torch.device) -> Work:
    """The first images of the sample, with random populations."""
    data = load_dataset(DATA, "train").head(size.batched)
    populations = Populations(GENES, images=size.batched, keep=size.variants, seed=0)
    return Work(
        images_BHWC_u8=np.asarray(data.images_NHWC_u8),
        labels_B=torch.from_numpy(np.asarray(data.labels_N, np.int64)).to(device),
        vectors_BVG=populations.vectors_NPG,
    )


def batched(deployed: DeployedModel, work: Work) -> Tensor:
    """The loss of each variant [B, V], as many at once as the method takes."""
    step = max(1, AT_ONCE // work.vectors_BVG.shape[1])
    parts = [
        variant_losses(
            deployed,
            deployed.module,
            work.images_BHWC_u8[start : start + step],
            work.labels_B[start : start + step],
            work.vectors_BVG[start : start + step],
            genes=GENES,
        )
        for start in range(0, len(work.labels_B), step)
    ]
    return torch.cat(parts)


@torch.no_grad()
def one_by_one(deployed: DeployedModel, work: Work) -> Tensor:
    """The same by a loop over images and variants."""
    losses_BV = torch.empty(work.vectors_BVG.shape[:2])
    for row, vectors_VG in enumerate(work.vectors_BVG.tolist()):
        image_CHW = _image(deployed, work, row)
        for number, vector in enumerate(vectors_VG):
            x_BHWC = affine(image_CHW, vector).permute(1, 2, 0)[None]
            logits = deployed.module(deployed.normalise(x_BHWC))
            losses_BV[row, number] = F.cross_entropy(logits, work.labels_B[row : row + 1])
    return losses_BV


def affine(image_CHW: Tensor, vector: Sequence[float]) -> Tensor:
    """A variant as one writes it with torchvision."""
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


def measure(size: Sizes, device: torch.device) -> tuple[dict[str, Figure], Times]:
    """All figures, and the seconds they come from."""
    deployed = load_deployed(*DEPLOYED, dataset_info(DATA), device=device)
    many = work_of(size, device)
    few = many.head(size.alone)
    apart = float((batched(deployed, few).cpu() - one_by_one(deployed, few)).abs().max())  # warm, too
    batched(deployed, many)
    ways: Mapping[str, Callable[[int], object]] = {
        "batched": lambda _: batched(deployed, many),
        "one_by_one": lambda _: one_by_one(deployed, few),
        "resampled": lambda _: _resampled(deployed, many),
        "affine": lambda _: _affine_of_all(deployed, few),
    }
    finish = torch.cuda.synchronize if device.type == "cuda" else None
    times = interleave(ways, rounds=size.rounds, finish=finish)
    more = size.batched / size.alone
    done = {name: size.alone if name in ("one_by_one", "affine") else size.batched for name in ways}
    figures: dict[str, Figure] = {
        "ratio": more * times.ratio("one_by_one", "batched"),
        "ratio_resampling": more * times.ratio("affine", "resampled"),
        "variants_per_s": {name: done[name] * size.variants / times.median(name) for name in ways},
        "loss_diff": apart,
    }
    return figures, times


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = options.parse_args(arguments)
    size = sizes(quick=given.quick, smoke=given.smoke)
    around = machine("metarepair", "torch", "torchvision", "numpy") | {"device": given.device} | vars(size)
    figures, times = measure(size, torch.device(given.device))
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
