"""Test that a run refuses to protect a class that does not exist before it mines."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarepair.config.load import parse_config
from metarepair.config.user_defaults import user_defaults
from metarepair.stages.pipeline import Pipeline
from tasks.errors import ConfigError


def pipeline(folder: Path, protected: str) -> Pipeline:
    settings = {
        "name": "one",
        "storage_path": str(folder),
        "data": {"name": "cifar10_sample", "max_train_images": 40, "max_test_images": 40},
        "targets": ["fog"],
        "limits": {"max_clean_drop": 0.01, "protected_classes": {protected: 0.1}},
    }
    return Pipeline(parse_config(user_defaults(settings)))


def test_an_unknown_class_is_refused_before_anything_is_mined(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "nosuch")
    for work in (run.mine, run.check_clean, lambda: run.restart("mine")):
        with pytest.raises(ConfigError, match="there is no class 'nosuch'"):
            work()
    assert not [*(tmp_path / "one").iterdir()]


@pytest.mark.parametrize("protected", ["cat", "3"])
def test_a_class_may_be_protected_by_name_and_by_number(
    tmp_path: Path, protected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pipeline(tmp_path, protected).check_clean()
    assert "clean test images" in caplog.text
