"""Pretraining builds and feeds the DNN as it will be deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metarepair.config import Config
from metarepair.models.build import DeployedModel
from metarepair.pretrain_stage import pretrain_stage
from metarepair.settings import parse_config
from tasks.errors import ConfigError
from tasks.manifest import read_manifest


def config(folder: Path, **model: Any) -> Config:
    return parse_config(
        {
            "name": "a",
            "storage_path": str(folder),
            "device": "cpu",
            "data": {"max_train_images": 60},
            "model": model,
            "mining": {"experiences": ["snow"]},
            "pretrain": {"epochs": 1, "batch_size": 20},
        }
    )


def test_images_are_trained_on_at_the_size_that_they_will_be_classified_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    normalise = DeployedModel.normalise

    def noting(self: DeployedModel, images: Any) -> Any:
        x = normalise(self, images)
        seen.add(x.shape[-1])
        return x

    monkeypatch.setattr(DeployedModel, "normalise", noting)
    pretrain_stage(config(tmp_path, input_size=16), print, restart=False)
    assert seen == {16}
    manifest = read_manifest(tmp_path / "a" / "deployed")
    assert manifest is not None
    assert manifest.config["preparation"] == {"input_size": 16}


def test_a_stem_that_the_dnn_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.stem=cifar is not known for resnet8_cifar"):
        pretrain_stage(config(tmp_path, stem="cifar"), print, restart=False)
