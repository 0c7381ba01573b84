"""Test that repairs keep frozen parameters, that wrappers are removed and that TorchScript is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from metarepair import repair
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.load import parse_config
from metarepair.data.clean_images import CleanImages
from metarepair.methods import METHODS, settings_of
from metarepair.methods.apricot.models import reinitialise
from metarepair.methods.base import Method, MethodContext
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel
from metarepair.models.factory import build_from_factory
from metarepair.models.wrappers import unwrapped
from metarepair.repairs.stage import repair_fairly
from small import deployed_of, failures_of, pixels
from tasks.errors import ConfigError

COLOUR = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
FROZEN = ("order", "first.weight", "block.1.weight")
TRAINING = {"epochs": 2, "batch_size": 8, "rate": 0.05}
CONFIG = parse_config(
    {
        "name": "unit",
        "device": "cpu",
        "mining": {"experiences": ["fog"]},
        "task": {"shots": 1},
        "inner": {"steps": 2, "weight_decay": 0.1},
        "repair": {"episodes": 1, "tasks": 2, "rates": [0.1]},
        "methods": {
            "tent": {"epochs": 2, "batch_size": 8, "rate": 0.05},
            "roid": {"epochs": 2, "batch_size": 8, "rate": 0.05},
            "augmix": TRAINING | {"weight_decay": 0.1},
            "deeprepair": TRAINING,
            "sensei": TRAINING | {"variants": 3, "keep": 2},
            "arachne": {"population": 8, "generations": 3},
            "archrepair": {
                "search": TRAINING | {"least_rate": 0.001},
                "tuning": TRAINING,
                "blocks": ["block"],
            },
            "apricot": TRAINING
            | {"patience": 2, "adjust_batch": 8, "reduced": {"models": 2, "per_class": 2, "epochs": 2}},
        },
    }
)


class Net(nn.Module):
    """A net with a frozen class order (integers), first layer and norm scale."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.last = nn.Linear(4, 3)
        self.order = nn.Parameter(torch.tensor([1, 2, 0]), requires_grad=False)
        for name in FROZEN:
            self.get_parameter(name).requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.block(torch.tanh(self.first(x_BCHW)))
        return self.last(x_BCHW.mean((2, 3)))[:, self.order]  # type: ignore[no-any-return]


def deployed() -> DeployedModel:
    return deployed_of(Net().eval())


def data() -> RepairData:
    collect = failures_of(np.arange(24) % 3, pixels(24, 0))
    images = pixels(24, 1)
    clean = CleanImages(images_NHWC=images, labels_N=deployed().logits(images).argmax(1).numpy())
    return replace(split_collected(collect, CONFIG, 0), clean=clean)


@lru_cache
def prepared() -> Path:
    folder = Path(mkdtemp())
    labels = np.arange(12) % 3
    clean = CleanImages(images_NHWC=pixels(12, 2), labels_N=labels)
    context = MethodContext(config=CONFIG, seed=0, settings=settings_of(CONFIG, "apricot"), prepared=folder)
    METHODS["apricot"].prepare(deployed(), replace(data(), clean=clean), context)
    return folder


def repaired(method: Method) -> RepairedModel:
    dnn = deployed()
    start = Start(parameters=dict(dnn.module.named_parameters()), buffers=dict(dnn.module.named_buffers()))
    name = method.name
    context = MethodContext(
        config=CONFIG,
        seed=0,
        settings=settings_of(CONFIG, name) if name in METHODS else method.Settings(),
        load_meta=lambda: start,
        load_joint=lambda: start,
        load_merged=lambda: start,
        prepared=prepared() if name == "apricot" else None,
    )
    return repair_fairly(method, dnn, data(), context)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_leaves_frozen_parameters_to_the_bit_and_their_flags(name: str) -> None:
    found, own = repaired(METHODS[name]), dict(deployed().module.named_parameters())
    module = found.module or Net()
    after = {k.replace("block.block.", "block."): v for k, v in found.parameters.items()}
    for key in FROZEN:
        assert torch.equal(after[key], own[key]), f"{name} changed {key}"
    if found.module is not None:
        flags = {k.replace("block.block.", "block."): p.requires_grad for k, p in module.named_parameters()}
        assert not any(flags[key] for key in FROZEN)
        assert flags["last.weight"]
    filled = found.fill(deployed().module)
    assert filled(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if "weights" in METHODS[n].changes])
def test_methods_change_parameters_that_are_not_frozen(name: str) -> None:
    found, own = repaired(METHODS[name]), dict(deployed().module.named_parameters())
    moved = [k for k, v in found.parameters.items() if k not in own or not torch.equal(v, own[k])]
    # Validation may keep the deployed weights; a walk always keeps the weights of its last episode.
    assert moved or not METHODS[name].walks


class Careless(Method):
    """Adds one to everything."""

    name, words, uses, changes, cost = "careless", "careless", ("failures",), ("weights",), "none"

    @torch.no_grad()
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:  # noqa: ARG002
        for parameter in deployed.module.parameters():
            parameter.add_(1)
        return repaired_from(self.name, deployed.module, context.budget)


def test_a_plugin_method_that_changes_a_frozen_parameter_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"careless changed (order|first\.weight), which has requires_grad=False"
    ):
        repaired(Careless())


def test_new_random_weights_leave_frozen_ones() -> None:
    module = Net()
    reinitialise(module)
    own = dict(Net().named_parameters())
    assert all(torch.equal(module.get_parameter(key), own[key]) for key in FROZEN)
    assert not torch.equal(module.last.weight, own["last.weight"])


def failing(module: nn.Module) -> tuple[Any, Any]:
    images = pixels(24, 3)
    with torch.no_grad():
        x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        predicted = module.eval()((x_BCHW - 0.5) / 0.25).argmax(1)
    return images, ((predicted + 1) % 3).numpy()


def test_a_call_leaves_frozen_parameters() -> None:
    found = repair(Net(), failing(Net()), **COLOUR).module
    assert all(torch.equal(found.get_parameter(k), Net().get_parameter(k)) for k in FROZEN)
    assert not found.get_parameter("first.weight").requires_grad
    assert not torch.equal(found.get_parameter("last.bias"), Net().last.bias)


def test_a_frozen_dnn_is_refused_with_the_remedy() -> None:
    module = Net().requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"All 9 parameters of Net .* requires_grad=False.*requires_grad_\(True\)"
    ):
        repair(module, failing(module), **COLOUR)
    assert repair(module, failing(module), **COLOUR, method="bn_adapt").method == "bn_adapt"


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "OptimizedModule": lambda module: torch.compile(module, backend="eager"),
    "DataParallel twice": lambda module: nn.DataParallel(nn.DataParallel(module)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_module_is_repaired_as_the_one_inside(name: str) -> None:
    given = failing(Net())
    plain, found = repair(Net(), given, **COLOUR), repair(WRAPPED[name](Net()), given, **COLOUR)
    assert type(found.module) is Net
    assert all(torch.equal(v, plain.module.state_dict()[k]) for k, v in found.module.state_dict().items())
    assert any("Net inside the given" in note for note in found.notes)
    assert not any("inside the given" in note for note in plain.notes)


def wrapped_net(num_classes: int) -> nn.Module:
    assert num_classes == 3
    return nn.DataParallel(Net())


def scripted_net(num_classes: int) -> nn.Module:
    assert num_classes == 3
    return torch.jit.trace(Net().eval(), torch.zeros(1, 3, 8, 8))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_factorys_wrapper_is_taken_off_and_its_script_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "metarepair.models.factory.find_factory", lambda path: globals()[path.partition(":")[2]]
    )
    assert type(build_from_factory("mine:wrapped_net", 3)) is Net
    with pytest.raises(ConfigError, match="TorchScript program"):
        build_from_factory("mine:scripted_net", 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_wherever_it_is() -> None:
    traced = torch.jit.trace(Net().eval(), torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match="it is a TorchScript program"):
        unwrapped(traced)
    inside = nn.Sequential(traced, nn.Identity())
    with pytest.raises(ConfigError, match="its submodule '0' is a TorchScript program"):
        repair(inside, failing(Net()), **COLOUR)


class Remembering(Net):
    """Stores its last activations, as nets with feature hooks do."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.kept = super().forward(x_BCHW)
        return self.kept


def old_weight_norm() -> nn.Module:
    module = Net()
    nn.utils.weight_norm(module.last)
    return module


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [Remembering, old_weight_norm])
@pytest.mark.parametrize("called", [False, True])
def test_a_module_that_keeps_tensors_with_a_graph_is_repaired(
    make: Callable[[], nn.Module], called: bool
) -> None:
    module, given = make(), failing(Net())
    if called:
        module(torch.zeros(1, 3, 8, 8))
    found = repair(module, given, **COLOUR)
    assert found.images_seen > 0
    assert found.module(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = Net()
    module.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"Net cannot be copied \(TypeError: .*lock"):
        repair(module, failing(Net()), **COLOUR)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:Complex modules:UserWarning")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lazy, "parameter 1.weight has no shape yet"),
        (lambda: Net().to("meta"), "parameter order has no values"),
        (lambda: nn.Linear(4, 3).to(torch.complex64), "parameter weight is complex"),
    ],
)
def test_parameters_that_no_repair_can_change_are_named(make: Callable[[], nn.Module], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        repair(make(), failing(Net()), **COLOUR)
