"""Settings in, what a stage works with out: the deployed DNN, the data set's splits, and their digests."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.engine.adapted import adapted_names
from metarepair.models.build import DeployedModel, load_deployed, state_hash
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import ArrayDataset, Split, dataset_info, load_dataset
from tasks.datasets.archives import Archive, load_archive
from tasks.errors import ConfigError
from tasks.experiences.corrupted_images import check_archive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """The deployed DNN and the data set; splits are read when first asked for.

    notes: whether to log, once for each, what lies beside a split's files and is not read.
    """

    config: Config
    deployed: DeployedModel
    _splits: dict[Split, ArrayDataset] = field(default_factory=dict)
    _inputs: dict[str, str] = field(default_factory=dict)
    notes: bool = False
    _noted: set[str] = field(default_factory=set)

    def split(self, split: Split) -> ArrayDataset:
        """A split, cut to data.max_*_images."""
        if split not in self._splits:
            data = self.config.data
            limit = data.max_train_images if split == "train" else data.max_test_images
            whole = load_dataset(data.source(), split)
            cut = whole if limit is None else whole.head(limit)
            archive = self._archive(cut) if split == "test" and data.archive else None
            self._splits[split] = replace(cut, corruption_table=data.corruption_table, archive=archive)
            for note in (*whole.passed_over, *(archive.passed_over if archive else ())):
                if self.notes and note not in self._noted:
                    self._noted.add(note)
                    logger.warning(note)
        return self._splits[split]

    def clean(self) -> CleanImages:
        """The clean training split to learn from."""
        train = self.split("train")
        return CleanImages(images_NHWC_u8=train.images_NHWC_u8, labels_N=train.labels_N)

    def _archive(self, test: ArrayDataset) -> Archive:
        archive = load_archive(Path(self.config.data.archive or "").expanduser())
        others = self.config.evaluate.others
        check_archive(
            archive, test, needed=(*self.config.targets, *(CORRUPTIONS if others is None else others))
        )
        return archive

    def inputs(self) -> dict[str, str]:
        """Digests of the deployed weights, of both splits, and of the archive where there is one."""
        if self._inputs:
            return dict(self._inputs)
        found = {"deployed": state_hash(self.deployed.module.state_dict())}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            found[split] = self.split(split).digest()
        archive = self.split("test").archive
        if archive is not None:
            found["archive"] = archive.digest
        self._inputs.update(found)
        return found


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda. Raises ConfigError when cuda is asked for and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no CUDA device here. Set device=cpu or device=auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def load_surroundings(
    config: Config, *, device: torch.device | None = None, notes: bool = False
) -> Surroundings:
    """The deployed DNN on `device` (the configured one when not given); data are not read yet."""
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
    adapted_names(deployed.module, config.inner.parts)  # a part that names nothing is said before any work
    return Surroundings(config, deployed, notes=notes)
