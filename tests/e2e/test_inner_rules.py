"""Inner rules and outer settings take effect from the command line to the repaired DNN."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metarepair.cli import main


def test_a_configured_inner_rule_takes_effect_in_training_and_repair(tiny_run: Path) -> None:
    config, storage = str(tiny_run / "tiny.yaml"), tiny_run / "runs"
    changes = [
        "inner.learned_rates=true",
        "inner.momentum=0.5",
        "inner.parts=[fc]",
        "train.outer_optimizer=AdamW",
        "train.outer_options={weight_decay: 0.1}",
        "train.first_order_episodes=1",
        "train.memory=recompute",
    ]
    options = ["--config", config, "--storage", str(storage), *(o for c in changes for o in ("--set", c))]
    assert main(["train", "--restart", *options]) == 0
    assert main(["repair", *options]) == 0
    meta = storage / "tiny" / "meta" / "gaussian_noise"
    factors = load_file(meta / "rates.safetensors")
    assert all(v.shape == (1,) for v in factors.values())
    assert any(not torch.equal(v, torch.ones(1)) for v in factors.values())
    facts = json.loads((meta / "manifest.json").read_text())["facts"]
    assert (facts["skipped_episodes"], facts["memory"]) == (0, "recompute, as set")
    theta = load_file(meta / "start.safetensors")
    repaired = load_file(
        storage / "tiny" / "repaired" / "gaussian_noise" / "metarepair" / "0" / "model.safetensors"
    )
    moved = {k for k in theta if k in factors or "running" in k or "num_batches" in k}
    assert all(torch.equal(repaired[k], theta[k]) for k in theta if k not in moved)
    assert any(not torch.equal(repaired[k], theta[k]) for k in factors)


def test_a_part_that_the_dnn_lacks_is_refused_before_any_work(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(tiny_run / "tiny.yaml")
    code = main(
        ["mine", "--config", config, "--storage", str(tiny_run / "new"), "--set", "inner.parts=[fcc]"]
    )
    assert code == 2
    assert "inner.parts: 'fcc' names no parameter" in capsys.readouterr().err
    assert not (tiny_run / "new" / "tiny" / "experiences").exists()
