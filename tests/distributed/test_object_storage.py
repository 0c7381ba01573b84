"""A whole run from the command line with Ray's actors and Ray Train on an object store; it starts its own Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metarepair.config.run import Config
from tasks.storage.manifest import read_manifest, verify_checksums
from tasks.storage.paths import place

Tiny = Callable[..., Config]


@pytest.mark.soak
@pytest.mark.distributed
def test_a_run_on_ray_completes_on_an_object_store(
    s3: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp") as folder:  # short, for socket names
        monkeypatch.setenv("RAY_TMPDIR", folder)
        changes = {"train": {"episodes": 2, "round_episodes": 1, "tasks": 2}, "evaluate": {"others": []}}
        settings = tiny(Path("/unused"), workers=1, **changes).model_dump(mode="json", exclude_none=True)
        config = tmp_path / "tiny.yaml"
        config.write_text(json.dumps(settings | {"storage_path": s3}), encoding="utf-8")
        command = [sys.executable, "-m", "metarepair", "run", "--config", str(config)]
        done = subprocess.run(command, check=False)
    assert done.returncode == 0
    root = place(s3) / "tiny"
    for folder_ in (root / "experiences" / "snow", root / "meta" / "gaussian_noise", root / "score"):
        manifest = read_manifest(folder_)
        assert manifest is not None
        verify_checksums(folder_, manifest)
    assert (root / "report" / "index.html").is_file()
