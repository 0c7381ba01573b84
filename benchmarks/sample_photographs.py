"""Write the shipped photographs of tasks/sample: test images of CIFAR-10 under a corruption that no kit has seen.

The corruption is `plasma_noise` of examples/corruptions_cbar, at a severity drawn for each image; the images are JPEG,
as a camera's are. Clean images of the sample's test split and of the shipped kit, and near-duplicates of them, are left
out, since they learn, select or judge beside these photographs. Two files: photographs.parquet to repair from,
photographs_later.parquet to judge by. The pixels before JPEG depend on the image's id alone; the files depend on the
version of Pillow, too.
Command: METAREPAIR_DATA=FOLDER python -m benchmarks.sample_photographs --out tasks/sample
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from examples.corruptions_cbar.corruptions_cbar import PLASMA_NOISE
from tasks.corruptions.severity import Dose
from tasks.datasets import DataSource, load_dataset
from tasks.keys import keyed_generator
from tasks.records import Ints, Pixels
from tasks.splits.near_duplicates import near_duplicates, perceptual_hashes

IMAGES = 800  # in each file
QUALITY = 92
FILES = ("photographs.parquet", "photographs_later.parquet")
KEY = "sample photographs"


def corrupted(images_NHWC: Pixels, ids_N: Ints) -> Pixels:
    """The images under plasma noise, each at a severity of its own."""
    rows = []
    for image_HWC, image_id in zip(images_NHWC, ids_N.tolist(), strict=True):
        generator = keyed_generator(KEY, image_id)
        severity = int(generator.integers(5))
        dose = Dose(
            constants=PLASMA_NOISE.constants["cifar"][severity],
            native_size=32,
            frost_scale=1.0,
            rngs=iter([generator]),
        )
        rows.append(PLASMA_NOISE.apply(image_HWC[None], dose)[0])
    return np.clip(np.rint(np.stack(rows)), 0, 255).astype(np.uint8)


def as_jpeg(image_HWC: Pixels) -> bytes:
    """A photograph's file."""
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    out = parser.parse_args().out
    whole = load_dataset(DataSource(name="cifar10"), "test")
    sample = load_dataset(DataSource(name="cifar10_sample"), "test")
    near_N = near_duplicates(perceptual_hashes(whole.images_NHWC), perceptual_hashes(sample.images_NHWC))
    free = np.flatnonzero(~near_N & ~np.isin(whole.image_ids_N, sample.image_ids_N))
    rows = keyed_generator(KEY, "rows").permutation(free)[: IMAGES * len(FILES)]
    for name, some in zip(FILES, np.split(np.sort(rows), len(FILES)), strict=True):
        images = corrupted(whole.images(some), whole.image_ids_N[some])
        table = pa.table(
            {
                "image": pa.array([as_jpeg(image) for image in images], pa.binary()),
                "label": pa.array([whole.classes[label] for label in whole.labels_N[some]], pa.string()),
            }
        )
        pq.write_table(table, out / name, compression="none")
        print(f"{out / name}: {len(some)} photographs, {(out / name).stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
