"""The images by which a repair is chosen inside limits: of the environment, right and wrong ones, and clean ones.

Nothing learns from them, and they do not judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages, LabelledImages
from metarepair.data.workspace import Surroundings
from tasks.datasets import ArrayDataset
from tasks.datasets.source import UNSPLIT
from tasks.environments import Environment
from tasks.errors import ConfigError, DataError
from tasks.keys import keyed_generator
from tasks.records import Ints
from tasks.splits import SELECT

# N images, H W C pixels

MOST = 2000  # images of each kind; with more, the search inside limits would take longer than the repair


@dataclass(frozen=True, kw_only=True)
class SelectingImages:
    """Images of the environment, each in all its severities, and clean images; `None` if there are none.

    classes: the names of the classes, in the order of the labels.
    """

    environment: LabelledImages
    clean: LabelledImages | None
    classes: tuple[str, ...]


def selecting_images(config: Config, here: Surroundings, target: str) -> SelectingImages:
    """Read the images that select for a target. Raises DataError if there are none of the environment or none clean."""
    source = here.environment("test", target)
    rows = np.flatnonzero(source.parts_N == SELECT)
    clean, clean_rows = clean_that_select(config, here)
    if not len(rows) or not len(clean_rows):
        raise DataError(
            f"limits: {target} has {len(rows)} images to select by, and there are {len(clean_rows)} clean ones; both "
            "are needed. Give more images, or leave out limits."
        )
    clean_rows = _some(clean_rows, "clean", MOST)
    return SelectingImages(
        environment=_in_all_severities(source, rows),
        clean=CleanImages(images_NHWC=clean.images(clean_rows), labels_N=clean.labels_N[clean_rows]),
        classes=here.split("test").classes,
    )


def clean_that_select(config: Config, here: Surroundings) -> tuple[ArrayDataset, Ints]:
    """The split that holds the clean images that select inside limits, and their rows in it."""
    if config.data.name == UNSPLIT:
        select = here.split("select")
        return select, np.arange(len(select.labels_N))
    return here.split("test"), np.flatnonzero(here.test_parts() == SELECT)


def _in_all_severities(source: Environment, rows: Ints) -> CleanImages:
    severities = source.severities
    rows = _some(rows, "environment", MOST // len(severities))
    images = np.concatenate([source.images(rows, severity) for severity in severities])
    return CleanImages(images_NHWC=images, labels_N=np.tile(source.labels_N[rows], len(severities)))


def _some(rows: Ints, purpose: str, most: int) -> Ints:
    """At most `most` of the rows, at random, always the same ones."""
    if len(rows) <= most:
        return rows
    order = keyed_generator("selecting images", purpose).permutation(len(rows))
    chosen: Ints = np.sort(rows[order[:most]])
    return chosen


def check_classes(protected: dict[str, float], classes: tuple[str, ...]) -> dict[int, float]:
    """Return the number of each protected class with the fall of its recall that is allowed.

    Raises ConfigError for a class that does not exist.
    """
    numbers = {str(number): number for number in range(len(classes))} | {
        name: number for number, name in enumerate(classes)
    }
    unknown = [name for name in protected if name not in numbers]
    if unknown:
        raise ConfigError(
            f"limits.protected_classes: there is no class {unknown[0]!r}. Give a number from 0 to {len(classes) - 1}, "
            f"or one of the names, such as {', '.join(classes[:10])}."
        )
    return {numbers[name]: fall for name, fall in protected.items()}
