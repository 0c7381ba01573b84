"""Loads the deployed DNN and the splits of the data set that the settings name, and computes their digests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from metarepair.config.run import Config
from metarepair.data.clean_images import HELD_OUT, CleanImages
from metarepair.engine.adapted import adapted_names
from metarepair.models.build import DeployedModel, load_deployed, state_hash
from metarepair.runs.layout import run_of
from tasks.corruptions import CORRUPTIONS, resolve
from tasks.datasets import ArrayDataset, Split, dataset_info, load_dataset
from tasks.datasets.archives import Archive, load_archive
from tasks.datasets.base import groups_of
from tasks.datasets.source import UNSPLIT
from tasks.environments import Environment, UserImages, check_archive, corrupted, read_images
from tasks.errors import ConfigError, DataError
from tasks.records import Ints
from tasks.splits import judge_half
from tasks.splits.parts import JUDGE, LEARN, SELECT, Mask, Parts, select_of_learned
from tasks.storage.manifest import content_hash, require_manifest
from tasks.storage.paths import Place
from tasks.storage.stages import IMAGES

logger = logging.getLogger(__name__)
_SHOWN = 10  # classes


@dataclass(frozen=True)
class Surroundings:
    """The deployed DNN and the data set; a split is read when it is first used.

    notes: whether to log what is noted of the splits, such as files beside their own that are not read. folder: a
    search's copies of the user's own images, which know what each image is for; None for the images of the run.
    """

    config: Config
    deployed: DeployedModel
    _splits: dict[Split, ArrayDataset] = field(default_factory=dict)
    _inputs: dict[str, str] = field(default_factory=dict)
    _environments: dict[tuple[Split, str], Environment] = field(default_factory=dict)
    _archives: dict[str, Archive] = field(default_factory=dict)
    _user_images: dict[str, UserImages] = field(default_factory=dict)
    notes: bool = False
    folder: Place | None = None
    _noted: set[str] = field(default_factory=set)

    def with_settings(self, config: Config) -> Surroundings:
        """Return a copy for other settings, which has the same DNN and data set already loaded."""
        return replace(self, config=config, _environments={}, _archives={}, _user_images={})

    def split(self, split: Split) -> ArrayDataset:
        """A split, limited to data.max_train_images or data.max_test_images."""
        if split not in self._splits:
            data = self.config.data
            limit = {"train": data.max_train_images, "test": data.max_test_images}.get(split)
            whole = load_dataset(data.source(), split)
            cut = whole if limit is None else whole.head(limit)
            archive = self._archive(cut) if split == "test" and data.archive else None
            self._splits[split] = replace(cut, corruption_table=data.corruption_table, archive=archive)
            if self.notes and data.name == UNSPLIT:
                _note_split(self._splits[split])
            for note in (*whole.passed_over, *(archive.passed_over if archive else ())):
                if self.notes:
                    self.note(note, logging.WARNING)
        return self._splits[split]

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Log a sentence about the data, unless it was logged before."""
        if text not in self._noted:
            self._noted.add(text)
            logger.log(level, text)

    def clean(self) -> CleanImages:
        """The clean training split to learn from."""
        learn, select = self.split("train"), self._select_split()
        return CleanImages(
            images_NHWC=learn.images_NHWC,
            labels_N=learn.labels_N,
            selects=None
            if select is None
            else CleanImages(images_NHWC=select.images_NHWC[:HELD_OUT], labels_N=select.labels_N[:HELD_OUT]),
        )

    def _select_split(self) -> ArrayDataset | None:
        """The clean images for selection, of images without splits of their own; other data sets have none."""
        return self.split("select") if self.config.data.name == UNSPLIT else None

    def clean_splits(self) -> dict[str, ArrayDataset]:
        """All clean images, by what to call them in messages."""
        select = self._select_split()
        splits = {"test": self.split("test"), "training": self.split("train")}
        return splits if select is None else splits | {"selecting": select}

    def _archive(self, test: ArrayDataset) -> Archive:
        archive = load_archive(Path(self.config.data.archive or "").expanduser())
        others = self.config.evaluate.others
        needed = (*self.config.targets, *(CORRUPTIONS if others is None else others))
        own = self.config.environments
        check_archive(archive, test, needed=tuple(n for n in needed if n not in own), setting="data.archive")
        return archive

    def environment(self, split: Split, name: str) -> Environment:
        """The environment `name`, as an experience (`train`), or as a target or for side effects (`test`).

        A corruption is applied to the images of `split`; other environments bring their own. Raises StageError if a
        user's images are not yet in the run's storage.
        """
        key = split, name
        if key not in self._environments:
            self._environments[key] = self._build_environment(split, name)
        return self._environments[key]

    def _build_environment(self, split: Split, name: str) -> Environment:
        config, given = self.config, self.config.environments.get(name)
        if config.has_own_images(name):
            own = self.user_images(name)
            if given is not None and given.left_out:
                own = own.without(given.left_out)
            return own if self.folder is not None else own.apart_from(self.judged_beside(name))
        data, corruption = self.split(split), name
        if given is not None:
            corruption = resolve(str(given.corruption))
            data = replace(self.split("test"), archive=self._given_archive(name))
        parts_N = self.test_parts() if data.split == "test" else None
        return corrupted(
            data,
            corruption,
            severities=config.mining.severities,
            seed=config.seed,
            name=name,
            parts_N=parts_N,
        )

    def user_images(self, name: str) -> UserImages:
        """The user's environment `name`, whatever other environments there are. Raises StageError if it is not read."""
        if name not in self._user_images:
            self._user_images[name] = self._read_user_images(name)
        return self._user_images[name]

    def judged_beside(self, name: str) -> list[UserImages]:
        """The user's other environments that judge repairs that learn from the environment `name`."""
        config, judging = self.config, [*(self.config.evaluate.others or ())]
        if name in config.mining.experiences:
            judging += config.targets
        own = [other for other in dict.fromkeys(judging) if other != name and config.has_own_images(other)]
        return [self.user_images(other) for other in own]

    def _read_user_images(self, name: str) -> UserImages:
        folder = (self.folder or run_of(self.config).environments) / name
        manifest = require_manifest(folder, IMAGES.remedy)
        classes = dataset_info(self.config.data.source()).classes
        return read_images(folder, manifest, name=name, classes=classes, seed=self.config.seed)

    def test_parts(self) -> Parts:
        """int8 [N], what each image of the test split is for: LEARN or JUDGE, and with limits SELECT."""
        groups_N, seed = groups_of(self.split("test")), self.config.seed
        if self.config.data.name == UNSPLIT and not self.config.learns_from_test_images:
            return np.full(len(groups_N), JUDGE, np.int8)  # other clean images select
        parts_N = judge_half(groups_N, fraction=self.config.mining.judge_fraction, seed=seed)
        if not self.config.limits.active:
            return parts_N
        if self.config.learns_from_test_images:
            return select_of_learned(parts_N, groups_N, seed=seed)
        return np.where(parts_N == LEARN, np.int8(SELECT), parts_N)

    def judged_rows(self, name: str, collected_ids: Ints) -> Ints:
        """The rows of the test split by which repairs for the target `name` are judged.

        They are those set aside to judge, and without any, all but those of D_collect (`collected_ids`).
        """
        test, parts_N = self.split("test"), self.test_parts()
        if (parts_N == JUDGE).any():
            return np.flatnonzero(parts_N == JUDGE)
        if self.config.has_own_images(name):
            return np.arange(len(parts_N))
        return np.flatnonzero(~np.isin(test.image_ids_N, collected_ids))

    def left_out(self, name: str) -> Mask:
        """bool [N], the images of the user's environment `name` that others keep from being learned from."""
        source = self.environment("test", name)
        assert isinstance(source, UserImages)
        mask: Mask = source.parts_N != self.user_images(name).parts_N
        return mask

    def inputs_of(self, name: str) -> dict[str, str]:
        """Digests of what the environment `name` is made from, besides `inputs`; none for a corruption."""
        if name not in self.config.environments:
            return {}
        if self.config.has_own_images(name):
            folder = run_of(self.config).environment(name)
            made_of = {f"environment {name}": require_manifest(folder, IMAGES.remedy).digest}
            left_out_N = self.left_out(name)
            if left_out_N.any():
                made_of[f"left out of {name}"] = content_hash(np.flatnonzero(left_out_N).tolist())
            return made_of
        return {f"environment {name}": self._given_archive(name).digest}

    def _given_archive(self, name: str) -> Archive:
        """The archive that the environment `name` is of, opened once."""
        if name not in self._archives:
            given = self.config.environments[name]
            archive = load_archive(Path(str(given.archive)).expanduser())
            needed = (resolve(str(given.corruption)),)
            check_archive(archive, self.split("test"), needed=needed, setting=f"environments.{name}.archive")
            self._archives[name] = archive
        return self._archives[name]

    def clean_inputs(self) -> dict[str, str]:
        """Digests of the clean images that repairs may see, among `inputs`."""
        return {key: digest for key, digest in self.inputs().items() if key in ("train", "select")}

    def inputs(self) -> dict[str, str]:
        """Digests of the deployed weights, of both splits, and of the archive if there is one."""
        if self._inputs:
            return dict(self._inputs)
        digests = {"deployed": state_hash(self.deployed.module.state_dict())}
        splits: tuple[Split, ...] = ("train", "test")
        train, test = (self.split(split).image_shape for split in splits)
        if train != test:
            raise DataError(
                f"The training images of {self.config.data.name} are {train[1]} x {train[0]} pixels, the test images "
                f"{test[1]} x {test[0]}; they must have one size. Set data.image_size (of your own images), or give "
                "splits of one size."
            )
        for split in splits:
            digests[split] = self.split(split).digest()
        if (select := self._select_split()) is not None:
            digests["select"] = select.digest()
        archive = self.split("test").archive
        if archive is not None:
            digests["archive"] = archive.digest
        self._inputs.update(digests)
        return digests


def _note_split(data: ArrayDataset) -> None:
    """Say how many clean images without splits of their own are in a split, and which classes it lacks."""
    purpose = {"train": "learn from", "select": "select by", "test": "judge by"}[data.split]
    logger.info(f"clean images to {purpose}: {len(data.labels_N)}")
    if lacking := lacking_classes(data.classes, np.arange(len(data.classes)), data.labels_N):
        logger.warning(f"none of the clean images to {purpose} is of {lacking}")


def lacking_classes(classes: Sequence[str], wanted: Ints, labels_N: Ints) -> str:
    """Return the names of the wanted classes that no label is of, the first few of many; empty if there are none."""
    names = [classes[label] for label in np.setdiff1d(wanted, labels_N)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def pick_device(name: str) -> torch.device:
    """The device for auto, cpu or cuda. Raises ConfigError if cuda is given and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no CUDA device here. Set device=cpu or device=auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def load_surroundings(
    config: Config, *, device: torch.device | None = None, notes: bool = False, folder: Place | None = None
) -> Surroundings:
    """Load the deployed DNN on `device` (None: the configured one). No data are read yet.

    notes, folder: of `Surroundings`.
    """
    info = dataset_info(config.data.source())
    deployed = load_deployed(
        config.model.name,
        config.model.weights,
        info,
        stem=config.model.stem,
        input_size=config.model.input_size,
        normalisation=config.model.normalisation,
        mean=config.model.mean,
        std=config.model.std,
        entry=config.model.entry,
        device=device or pick_device(config.device),
    )
    adapted_names(deployed.module, config.inner.parts)  # fail before any work if a part names nothing
    return Surroundings(config, deployed, notes=notes, folder=folder)
