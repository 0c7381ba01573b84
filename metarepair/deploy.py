"""Settings in, what a stage works with out: the deployed DNN, the data set's splits, and their digests."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from metarepair.config import Config
from metarepair.models.build import DeployedModel, load_deployed, state_hash
from tasks.datasets import ArrayDataset, Split, dataset_info, load_dataset
from tasks.errors import ConfigError


@dataclass(frozen=True)
class Surroundings:
    """The deployed DNN and the data set; splits are read when first asked for."""

    config: Config
    deployed: DeployedModel
    _splits: dict[Split, ArrayDataset] = field(default_factory=dict)

    def split(self, split: Split) -> ArrayDataset:
        """A split, cut to data.max_*_images."""
        if split not in self._splits:
            data = self.config.data
            limit = data.max_train_images if split == "train" else data.max_test_images
            whole = load_dataset(data.name, split, root=data.root)
            self._splits[split] = whole if limit is None else whole.head(limit)
        return self._splits[split]

    def inputs(self) -> dict[str, str]:
        """Digests of the deployed weights and of both splits."""
        found = {"deployed": state_hash(self.deployed.module.state_dict())}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            found[split] = self.split(split).digest()
        return found


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda. Raises ConfigError when cuda is asked for and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no CUDA device here. Set device=cpu or device=auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def load_surroundings(config: Config, *, device: torch.device | None = None) -> Surroundings:
    """The deployed DNN on `device` (the configured one when not given); data are not read yet."""
    info = dataset_info(config.data.name)
    deployed = load_deployed(
        config.model.name, config.model.weights, info, device=device or pick_device(config.device)
    )
    return Surroundings(config, deployed)
