"""Read the user's own images into the run's storage, once, before anything is mined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, lacking_classes
from metarepair.runs.layout import Run
from metarepair.runs.run_stage import StageOutput, run_stage
from tasks.datasets import Listing, list_images
from tasks.environments import CleanSplits, Environment, listing_digest, write_images
from tasks.errors import DataError, StageError
from tasks.splits import JUDGE, LEARN, SELECT, UNUSED
from tasks.splits.digests import pixel_digests
from tasks.splits.near_duplicates import perceptual_hashes
from tasks.storage.manifest import read_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import IMAGES

logger = logging.getLogger(__name__)
LISTING = "listing"


def user_environments(config: Config) -> list[str]:
    """The names of the environments with a user's own images that the run uses, each once."""
    return [name for name in used_names(config) if config.has_own_images(name)]


def used_names(config: Config) -> list[str]:
    """The names of all environments and corruptions that the run uses, each once."""
    return list(dict.fromkeys((*config.mining.experiences, *config.targets, *(config.evaluate.others or ()))))


def read_user_images(run: Run, config: Config, here: Surroundings) -> None:
    """Read the images of every environment that is not yet in the run's storage.

    Raises DataError for images or labels that cannot be used, and for images that judge one environment and are learned
    from in another; StageError if images were added, removed or relabelled since they were read.
    """
    clean = cache(partial(_clean_images, here))  # computed once for all environments, if one has to be read
    names = user_environments(config)
    for name in names:
        _read(run, config, name, here, clean)
    for name in names:
        _check_apart(here, name)
        _note_parts(here, here.environment("test", name))
    idle = [name for name in config.environments if name not in used_names(config)]
    if idle:
        here.note(
            "environments that are neither targets nor in mining.experiences nor in evaluate.others, and are not read: "
            + ", ".join(idle),
            logging.WARNING,
        )


def _clean_images(here: Surroundings) -> CleanSplits:
    splits = here.clean_splits()
    hashes = {name: perceptual_hashes(split.images_NHWC) for name, split in splits.items()}
    return CleanSplits(
        digests={name: pixel_digests(split.images_NHWC) for name, split in splits.items()},
        judge=hashes.pop("test"),
        learn=np.concatenate([*hashes.values()]),
    )


def _check_apart(here: Surroundings, name: str) -> None:
    """Raise DataError if images of this environment that are learned from judge another one."""
    learned = here.user_images(name)
    digests = learned.digests_N[learned.learned_N].tolist()
    for judge in here.judged_beside(name):
        judges_N = judge.parts_N == JUDGE
        file_of = dict(zip(judge.digests_N[judges_N].tolist(), np.flatnonzero(judges_N), strict=True))
        both = [file_of[digest] for digest in digests if digest in file_of]
        if both:
            raise DataError(
                f"{len(both)} images that judge {judge.name} are learned from as images of {name}, such as "
                f"{judge.names[both[0]]}. What judges must not be learned from: remove them from {name}, or give "
                f"{judge.name} a holdout of other images."
            )
    given = here.config.environments[name]
    named_N = np.isin(np.asarray(here.user_images(name).names, dtype=object), list(given.left_out))
    near = int((here.left_out(name) & ~named_N).sum())
    if near:
        here.note(
            f"{name}: {near} images are near-duplicates of images that judge another environment; they are not used",
            logging.WARNING,
        )


def _note_parts(here: Surroundings, source: Environment) -> None:
    """Say how many images learn, select and judge, and which classes none that judges has."""
    counts = [f"{int((source.parts_N == part).sum())} {words}" for part, words in _PARTS]
    here.note(f"{source.name}: of {len(source.parts_N)} images, {', '.join(counts)}")
    judged_N = source.labels_N[source.parts_N == JUDGE]
    if lacking := lacking_classes(source.classes, source.labels_N, judged_N):
        here.note(
            f"{source.name}: none of the images that judge is of {lacking}; repairs are not judged on that",
            logging.WARNING,
        )


_PARTS = ((LEARN, "are learned from"), (SELECT, "select"), (JUDGE, "judge"), (UNUSED, "are not used"))


def check_user_images(config: Config, here: Surroundings) -> None:
    """List the images of every environment, without opening them. Raises DataError if they cannot be used."""
    for name in user_environments(config):
        _listed(config, name, here)


def _listed(config: Config, name: str, here: Surroundings) -> dict[str, Listing]:
    classes = here.split("test").classes
    return {
        part: list_images(source, classes) for part, source in config.environments[name].sources(name).items()
    }


def _read(run: Run, config: Config, name: str, here: Surroundings, clean: Callable[[], CleanSplits]) -> None:
    folder, classes = run.environment(name), here.split("test").classes
    settings: dict[str, Any] = {"image_size": here.split("test").image_shape[0], "classes": list(classes)}
    sources = config.environments[name].sources(name)
    held = _held(folder)
    if held is not None and not any(source.location.exists() for source in sources.values()):
        logger.info(f"{name}: its files are no longer there; the images in {folder} are used")
        return
    listed = _listed(config, name, here)
    for part in listed.values():
        for note in part.passed_over:
            here.note(note, logging.WARNING)
    inputs = {LISTING: listing_digest(listed)}
    if held is not None and held.get(LISTING) != inputs[LISTING]:
        raise StageError(
            f"{sources['collect'].location} has changed since its images were read into {folder}. Give this run "
            "another name, or start over with --restart."
        )
    make = partial(
        _make, folder, listed, name, config.environments[name].unreadable, settings["image_size"], clean
    )
    run_stage(IMAGES, folder, make, names=[name], config=settings, inputs=inputs)


def _held(folder: Place) -> dict[str, str] | None:
    """The inputs of the images that the run holds; `None` if it holds none, or their manifest is damaged."""
    try:
        manifest = read_manifest(folder)
    except DataError:  # run_stage says so, and makes it again
        return None
    return None if manifest is None else manifest.inputs


def _make(
    folder: Place,
    listed: dict[str, Listing],
    name: str,
    most_unreadable: float,
    image_size: int,
    clean: Callable[[], CleanSplits],
) -> StageOutput:
    files, rows, facts = write_images(
        folder,
        listed,
        name=name,
        image_size=image_size,
        most_unreadable=most_unreadable,
        clean=clean(),
    )
    logger.info(f"{name}: {rows['images']} images; {facts['groups']} groups")
    return StageOutput(files=files, rows=rows, facts=facts)
