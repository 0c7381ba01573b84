"""Test the average of the repairs of past environments: its weights, and its arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from metarepair.adaptation.meta_test import Start
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.repairs.merged import averaged, merge_weights, merged_inputs
from metarepair.runs.layout import Run
from small import small_net
from tasks.errors import ConfigError, StageError
from tasks.storage.manifest import write_manifest
from tasks.storage.paths import write_table


def config(**changes: Any) -> Config:
    mining = {"experiences": ["fog", "snow", "gaussian_noise"]}
    values: dict[str, Any] = {"name": "unit", "targets": ["frost", "fog"], "mining": mining}
    return parse_config(values | changes)


def scored(folder: Path, probabilities: dict[str, dict[str, float]]) -> Run:
    """A run whose score holds these probabilities, by target and experience."""
    rows = [
        {"target": target, "experience": name, "probability": p, "rule": "hinge", "alpha": 1.0, "beta": 0.0}
        for target, ps in probabilities.items()
        for name, p in ps.items()
    ]
    write_table(folder / "score" / "confidence.parquet", pa.Table.from_pylist(rows))
    return Run(folder)


def start_of(module: nn.Module, seed: int) -> Start:
    """Random weights and statistics for `module`; the counts of batches are `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(own: torch.Tensor) -> torch.Tensor:
        if not own.is_floating_point():
            return torch.full_like(own, seed)
        return torch.randn(own.shape, generator=generator).to(own.dtype)

    return Start(
        parameters={k: drawn(v) for k, v in module.named_parameters()},
        buffers={k: drawn(v) for k, v in module.named_buffers()},
    )


def test_the_weights_are_the_confidence_without_the_targets_of_the_run(tmp_path: Path) -> None:
    """The target fog takes half of the confidence of frost with it, and its own experiences are not touched."""
    run = scored(
        tmp_path,
        {
            "frost": {"fog": 0.5, "snow": 0.4, "gaussian_noise": 0.1},
            "fog": {"snow": 0.25, "gaussian_noise": 0.75},
        },
    )
    assert merge_weights(run, config(), "frost") == pytest.approx({"snow": 0.8, "gaussian_noise": 0.2})
    assert merge_weights(run, config(), "fog") == {"snow": 0.25, "gaussian_noise": 0.75}
    one = config(targets=["frost"])
    assert merge_weights(run, one, "frost") == {"fog": 0.5, "snow": 0.4, "gaussian_noise": 0.1}


def test_an_experience_that_is_not_chosen_or_has_no_confidence_weighs_nothing(tmp_path: Path) -> None:
    run = scored(tmp_path, {"frost": {"fog": 0.4, "snow": 0.6, "gaussian_noise": 0.0}, "fog": {"snow": 1.0}})
    assert merge_weights(run, config(), "frost") == {"snow": 1.0}
    assert merge_weights(run, config(), "fog") == {"snow": 1.0}


def test_a_target_without_such_an_experience_is_refused_in_one_paragraph(tmp_path: Path) -> None:
    run = scored(tmp_path, {"frost": {"fog": 1.0, "snow": 0.0}})
    with pytest.raises(
        ConfigError, match=r"merged for frost: .*all in fog,.*Add other environments"
    ) as refused:
        merge_weights(run, config(), "frost")
    assert "\n" not in str(refused.value)
    with pytest.raises(StageError, match=r"no target 'snow'.*score again"):
        merge_weights(run, config(), "snow")


@pytest.mark.parametrize("norm", [True, False])
def test_the_average_is_weighted(norm: bool) -> None:
    module = small_net(norm=norm)
    one, two = start_of(module, 1), start_of(module, 2)
    found = averaged([(0.9, one), (0.1, two)], module)
    assert found.parameters.keys() == dict(module.named_parameters()).keys()
    for key, value in (found.parameters | found.buffers).items():
        first, second = ((start.parameters | start.buffers)[key] for start in (one, two))
        if not value.is_floating_point():
            assert torch.equal(value, dict(module.named_buffers())[key])
            continue
        expected = (9 * first.double() + second.double()) / 10
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7), key
        assert not torch.allclose(value.double(), (first.double() + second.double()) / 2, atol=1e-3), key
    assert bool(found.buffers) == norm


def test_the_average_of_one_is_that_one_to_the_bit() -> None:
    module = small_net()
    one = start_of(module, 1)
    found = averaged([(1.0, one)], module)
    assert all(torch.equal(value, one.parameters[key]) for key, value in found.parameters.items())
    for key, value in found.buffers.items():
        assert torch.equal(value, one.buffers[key]) == value.is_floating_point(), key


def test_the_average_is_computed_in_float64() -> None:
    """In float32, sevenths of many numbers do not sum to these numbers again."""
    module = nn.Linear(1000, 1, bias=False)
    values = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    starts = [(1 / 7, Start(parameters={"weight": values}, buffers={}))] * 7
    assert averaged(starts, module).parameters["weight"].equal(values)


def test_frozen_parameters_are_those_of_the_deployed_dnn_to_the_bit() -> None:
    module = small_net().double()
    frozen = next(iter(module.parameters())).requires_grad_(False)
    own = Start(parameters=dict(module.named_parameters()), buffers=dict(module.named_buffers()))
    found = averaged([(p, own) for p in (0.1, 0.2, 0.7)], module)
    assert torch.equal(found.parameters["0.weight"], frozen)


def test_a_repair_depends_on_the_confidence_and_on_the_repairs_that_it_averages(tmp_path: Path) -> None:
    def inputs(p: float, content: str) -> dict[str, str]:
        run = scored(tmp_path, {"frost": {"fog": 0.5, "snow": p, "gaussian_noise": 0.5 - p}})
        for name in ("snow", "gaussian_noise"):
            run.merged(name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "merged" / name / "model.safetensors").write_text(content)
            write_manifest(
                run.merged(name), stage=f"merged {name}", config={}, inputs={}, files=["model.safetensors"]
            )
        return merged_inputs(run, config(), "frost")

    one, other, changed = inputs(0.25, "a"), inputs(0.2, "a"), inputs(0.25, "b")
    assert one["merged"] == other["merged"] != changed["merged"]
    assert one["confidence"] == changed["confidence"] != other["confidence"]
    with pytest.raises(StageError, match="Train first: metarepair train"):
        merged_inputs(scored(tmp_path, {"frost": {"fog": 1.0}}), config(targets=["frost"]), "frost")
