"""Tabulate DNNs' parameters, multiply-adds, accuracies by corruption, and training speed.

    measured   DNNs with weights, on CIFAR-10's test split (METAREPAIR_DATA): all 10,000 clean images, and 1,000 images
               for each corruption, with severities pooled (image numbers cycle through the severities)
    trained    images/s of `metarepair pretrain`'s own steps, batches of 128 in float32 with flips and shifts
    counted    only parameters and multiply-adds, by torch's counter, of the paper's DNNs at 32 and 64 px

Multiply-adds are those of convolutions and matrix products in the forward pass of one image. With 1,000 images an
accuracy is known to ±3 points (95 %). All DNNs see the same images, so differences between DNNs are more precise.
Command: python -m benchmarks.models_table [--third-party FOLDER] [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, parser
from metarepair.config.pretraining import PretrainConfig
from metarepair.models.build import DeployedModel, build_model, load_deployed
from metarepair.models.preprocessing import Colour
from metarepair.models.stems import Stem
from metarepair.pretraining.pretrain import on_clean_images
from metarepair.runs.context import LocalContext
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import ArrayDataset, DataSource, dataset_info, load_dataset
from tasks.environments import corrupted_images
from tasks.storage.paths import place

SEVERITIES = (1, 2, 3, 4, 5)
BATCH = 128
IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A DNN on a data set. Accuracies are fractions, None if it was not run."""

    model: str
    data: str
    pixels: int
    stem: Stem
    parameters: int
    multiply_adds: int
    clean: float | None = None
    corrupted: Mapping[str, float] | None = None
    images_per_s: float | None = None
    epoch_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """A DNN with weights for CIFAR-10."""

    name: str
    weights: str
    mean: Colour | None = None
    std: Colour | None = None

    def load(self, source: DataSource) -> DeployedModel:
        info = dataset_info(source)
        return load_deployed(self.name, self.weights, info, mean=self.mean, std=self.std)


SHIPPED = (
    Known(name="resnet8_cifar", weights="shipped:resnet8_cifar10"),
    Known(name="convnext_cifar", weights="shipped:convnext_cifar10"),
)
THIRD_PARTY = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
COUNTED: tuple[tuple[str, str, int, int, Stem], ...] = tuple(
    (name, data, classes, pixels, stem)
    for name in ("densenet121", "convnext_base", "van_b2")
    for data, classes, pixels in (("CIFAR-10", 10, 32), ("tiny-ImageNet", 200, 64))
    for stem in ("imagenet", "cifar")
)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, pixels: int) -> int:
    """Count the multiply-adds of convolutions and matrix products for one image with sides of `pixels`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, 3, pixels, pixels))
    return int(counter.get_total_flops()) // 2


def counted(name: str, data: str, classes: int, pixels: int, stem: Stem) -> Row:
    """Return the row of a DNN without weights."""
    module = build_model(name, classes, stem=stem)
    return Row(
        model=name,
        data=data,
        pixels=pixels,
        stem=stem,
        parameters=count_parameters(module),
        multiply_adds=count_multiply_adds(module, pixels),
    )


def accuracy(deployed: DeployedModel, images_BHWC_u8: np.ndarray, labels_B: np.ndarray) -> float:
    return float((deployed.logits(images_BHWC_u8).argmax(1).numpy() == labels_B).mean())


def pooled(data: ArrayDataset, corruption: str, images: int) -> np.ndarray:
    """Corrupt the first `images` images; severities 1 to 5 alternate, so the sixth has severity 1 again."""
    out_BHWC = data.images(np.arange(images)).copy()
    for number, severity in enumerate(SEVERITIES):
        rows = np.arange(number, images, len(SEVERITIES))
        out_BHWC[rows] = corrupted_images(data, rows, corruption=corruption, severity=severity, seed=0)
    return out_BHWC


def training_speed(known: Known, data: ArrayDataset, source: DataSource, *, steps: int) -> float:
    """Return pretraining's images per second: the median of three measurements of `steps` steps."""
    config = PretrainConfig(epochs=1, batch_size=BATCH, keep="last", validation_fraction=0.0)
    part = data.head(BATCH * steps)
    speeds = []
    for _ in range(4):
        context = LocalContext(folder=place("unused"), device=torch.device("cpu"))
        made = on_clean_images(known.load(source), part, config, context, seed=0)
        speeds.append(made.run_epoch().images_per_s)
        made.close()
    return statistics.median(speeds[1:])  # the first warms up: kernels are chosen


def measured(known: Sequence[Known], source: DataSource, *, images: int, steps: int) -> list[Row]:
    """Return rows with accuracies and speeds. Each corruption is made once for all DNNs."""
    test, train = load_dataset(source, "test"), load_dataset(source, "train")
    images = min(images, len(test.labels_N))
    deployed = {each.name: each.load(source) for each in known}
    clean = {
        name: accuracy(model, test.images(slice(None)), test.labels_N) for name, model in deployed.items()
    }
    corrupted: dict[str, dict[str, float]] = {name: {} for name in deployed}
    for corruption in CORRUPTIONS:
        started, pixels_BHWC = time.monotonic(), pooled(test, corruption, images)
        for name, model in deployed.items():
            corrupted[name][corruption] = accuracy(model, pixels_BHWC, test.labels_N[:images])
        print(f"{corruption:20s} {time.monotonic() - started:6.1f} s", flush=True)
    rows = []
    for each in known:
        speed = training_speed(each, train, source, steps=steps)
        module, side = deployed[each.name].module, test.image_shape[0]
        rows.append(
            Row(
                model=each.name.rpartition(":")[2],
                data=source.name,
                pixels=side,
                stem="imagenet",
                parameters=count_parameters(module),
                multiply_adds=count_multiply_adds(module, side),
                clean=clean[each.name],
                corrupted=corrupted[each.name],
                images_per_s=speed,
                epoch_s=len(train.labels_N) / speed,
            )
        )
        print(f"{each.name:20s} trains {speed:.0f} images/s", flush=True)
    return rows


def table_of_models(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each DNN and data set."""
    lines = [
        "| DNN | data set | px | stem | parameters | multiply-adds | clean % | mean of 19 corruptions % "
        "| training images/s | s per epoch |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mean = None if row.corrupted is None else statistics.mean(row.corrupted.values())
        cells = [row.model, row.data, str(row.pixels), row.stem]
        cells += [f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e6:,.0f} M"]
        cells += [_or_dash(row.clean, 100, ".2f"), _or_dash(mean, 100, ".1f")]
        cells += [_or_dash(row.images_per_s, 1, ",.0f"), _or_dash(row.epoch_s, 1, ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_corruptions(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each corruption and a column for each measured DNN."""
    run = [row for row in rows if row.corrupted is not None]
    lines = [f"| corruption | {' | '.join(row.model for row in run)} |", f"| --- |{' ---: |' * len(run)}"]
    for corruption in CORRUPTIONS:
        cells = [_or_dash((row.corrupted or {})[corruption], 100, ".1f") for row in run]
        lines.append(f"| {corruption} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _or_dash(value: float | None, scale: float, form: str) -> str:
    return "–" if value is None else format(value * scale, form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument(
        "--third-party", type=Path, metavar="FOLDER", help=f"holds {', '.join(THIRD_PARTY.values())}"
    )
    given = options.parse_args(arguments)
    known = list(SHIPPED)
    for name, file in THIRD_PARTY.items() if given.third_party else ():
        weights, (mean, std) = str(given.third_party / file), IMAGENET
        known.append(Known(name=f"examples.cifar_resnets:{name}", weights=weights, mean=mean, std=std))
    source = DataSource(name="cifar10_sample" if given.smoke else "cifar10")
    images, steps = (20, 1) if given.smoke else (1000, 10 if given.quick else 40)
    around = machine("metarepair", "torch", "timm", "numpy")
    rows = measured(known, source, images=images, steps=steps)
    rows += [counted(*each) for each in (COUNTED[:1] if given.smoke else COUNTED)]
    print(f"\n{table_of_models(rows)}\n\n{table_of_corruptions(rows)}\n")
    print(", ".join(f"{key} {value}" for key, value in around.items()))
    if given.smoke:
        print("Tiny sizes: these figures only show that the benchmark runs.")
    if given.json is not None:
        content = {"rows": [asdict(row) for row in rows], "smoke": given.smoke, "machine": around}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {given.json}")


if __name__ == "__main__":
    main()
