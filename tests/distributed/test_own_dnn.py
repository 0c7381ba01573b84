"""A DNN from a module in the user's folder works on Ray: workers that mine, score or train import the module."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from metarepair.config.run import Config
from metarepair.weights import SHIPPED

pytestmark = pytest.mark.distributed

MODULE = """\
from metarepair.models.resnet8 import ResNet8

def net(num_classes):
    return ResNet8(num_classes)
"""


@pytest.mark.slow
def test_workers_import_the_users_module_but_not_user_files_named_like_our_packages(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "strange_nets.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "distributed").mkdir()
    for hiding in ("tasks.py", "metarepair.py", "distributed/__init__.py"):
        (tmp_path / hiding).write_text("raise RuntimeError('a file of the user')", encoding="utf-8")
    state = {f"module.{k}": v for k, v in load_file(SHIPPED / "resnet8_cifar10.safetensors").items()}
    torch.save({"state_dict": state}, tmp_path / "net.th")
    train = {"episodes": 2, "round_episodes": 1, "tasks": 2}
    config = tiny(
        tmp_path / "runs",
        workers=1,
        train=train,
        repair={"methods": ["none", "metarepair"]},
        evaluate={"others": []},
    )
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    # Like the installed command, without the current folder on the path. The checkout is on it, also on workers.
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from metarepair.cli import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            "--config",
            "own.yaml",
            "--model",
            "strange_nets:net",
            "--weights",
            "net.th",
        ],
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("the prefix 'module.' was left out") == 1
    assert (tmp_path / "runs/tiny/report/index.html").is_file()
