"""Compare our corruptions with the package imagecorruptions at 224 px: how much and at which scales images change.

The images are photographs of the shipped sample, enlarged, at severities 1, 3 and 5 of the ImageNet table. The package
uses the same table, except for elastic, which it defines differently. New releases of NumPy and scikit-image removed
two names that the package needs; they are restored here.
Command: python -m benchmarks.corruption_agreement [--images N] [--json FILE]; needs `imagecorruptions`
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Peer, require_peers
from tasks.corruptions import CORRUPTIONS, corrupt
from tasks.datasets import load_dataset

# B images, H W C pixels
SIZE, BANDS, SEVERITIES = 224, 6, (1, 3, 5)


def photographs(count: int) -> NDArray[np.uint8]:
    """Return the first images of the sample, enlarged [B, 224, 224, 3]."""
    sample = load_dataset("cifar10_sample", "train").images_NHWC[:count]
    grown = [cv2.resize(np.asarray(i), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for i in sample]
    return np.stack(grown)


def mended_peer() -> Any:
    """Import imagecorruptions, with the names restored that newer NumPy and scikit-image removed."""
    vars(np).setdefault("float_", np.float64)
    package: Any = import_module("imagecorruptions")
    module: Any = import_module("imagecorruptions.corruptions")
    gaussian = module.gaussian

    def with_multichannel(image: Any, *given: Any, multichannel: bool = False, **options: Any) -> Any:
        return gaussian(image, *given, channel_axis=-1 if multichannel else None, **options)

    module.gaussian = with_multichannel
    return package


def statistics(changed: NDArray[np.uint8], clean: NDArray[np.uint8]) -> dict[str, float]:
    """Return, over all images, the change's mean, mean size and spread, and its amplitude in six frequency bands."""
    change = changed.astype(np.float64) - clean
    spectrum = np.sqrt((np.abs(np.fft.fft2(change, axes=(1, 2))) ** 2).mean(axis=(0, 3)))
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
    bands = np.digitize(frequency, np.geomspace(1 / SIZE, 0.5, BANDS + 1)[1:-1])
    found = {"mean": change.mean(), "size": np.abs(change).mean(), "spread": change.std()}
    return found | {f"band {k + 1}": spectrum[bands == k].mean() for k in range(BANDS)}


def compared(name: str, peer: Any, images: NDArray[np.uint8]) -> dict[str, float | str]:
    """Return ratios of ours to theirs (geometric means over severities), and the difference of means in grey levels."""
    logs, means = [], []
    for severity in SEVERITIES:
        ids = np.arange(len(images))
        ours = corrupt(images, image_ids_B=ids, corruption=name, severity=severity, seed=0, table="imagenet")
        np.random.seed(0)  # the package draws from the global generator
        try:
            theirs = np.stack([peer.corrupt(i, severity=severity, corruption_name=name) for i in images])
        except Exception as error:  # any error is reported as the result
            return {"fails": f"{type(error).__name__}: {error}"}
        a, b = statistics(ours, images), statistics(theirs, images)
        means.append(a["mean"] - b["mean"])
        logs.append({key: np.log(a[key] / b[key]) for key in a if key != "mean"})
    ratios = {key: float(np.exp(np.mean([row[key] for row in logs]))) for key in logs[0]}
    return {"mean difference": float(np.mean(means))} | ratios


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16, help="photographs (16)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    given = parser.parse_args()
    require_peers([Peer(name="imagecorruptions", module="imagecorruptions")])
    peer, images = mended_peer(), photographs(given.images)
    columns = ["mean difference", "size", "spread", *(f"band {k + 1}" for k in range(BANDS))]
    print("| corruption | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    figures = {}
    for name in CORRUPTIONS:
        figures[name] = row = compared(name, peer, images)
        cells = [f"{row[c]:.2f}" for c in columns] if "fails" not in row else [str(row["fails"])]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    packages = ("imagecorruptions", "numpy", "scikit-image", "opencv-python-headless", "pillow")
    print(", ".join(f"{package} {version(package)}" for package in packages))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
