"""A kit is made and used on a real local Ray as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from distributed.stages.executor import executor_for
from kits import KIT, with_kit
from metarepair.config.kit import kit_defaults, merged
from metarepair.config.load import parse_config
from metarepair.kit.kit import open_kit
from metarepair.stages.kit import KitWork
from metarepair.stages.pipeline import Pipeline

pytestmark = pytest.mark.distributed


@pytest.mark.soak
def test_one_worker_makes_the_kit_of_one_process_and_repairs_with_it(cluster: None, tmp_path: Path) -> None:
    found = []
    for workers in (0, 1):
        values = merged(kit_defaults(workers=workers), KIT)
        named = {"name": f"w{workers}", "storage_path": str(tmp_path), "workers": workers}
        found.append(KitWork(Pipeline(parse_config(values | named), executor_for)).make())
    here, ray = found
    assert here.digests().tolist() == ray.digests().tolist()
    assert here.file.deployed == ray.file.deployed
    for name in ("joint/model.safetensors", "meta/shared/start.safetensors"):
        ours, theirs = (load_file(tmp_path / one / name) for one in ("w0", "w1"))
        assert all(value.allclose(theirs[key], rtol=0, atol=1e-5) for key, value in ours.items())
    config = parse_config(with_kit(tmp_path / "w1", tmp_path / "runs", workers=1, refine=1))
    pipeline = Pipeline(config, executor_for)
    pipeline.whole()
    run = tmp_path / "runs/withkit"
    assert (run / "meta/gaussian_noise/start.safetensors").is_file()
    assert not (run / "joint").exists()
    joint = load_file(run / "repaired/gaussian_noise/joint/0/model.safetensors")
    assert all(
        value.equal(joint[key]) for key, value in load_file(tmp_path / "w1/joint/model.safetensors").items()
    )
    assert open_kit(tmp_path / "w1").file.failures
