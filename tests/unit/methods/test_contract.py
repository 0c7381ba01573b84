"""Test the contract of repair methods: a method can reach the data that it declares, and no other."""

from __future__ import annotations

import gc
import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import metarepair
from metarepair.adaptation import repair_data
from metarepair.adaptation.meta_test import Start
from metarepair.adaptation.repair_data import RepairData, split_collected
from metarepair.config.load import parse_config
from metarepair.data.clean_images import CleanImages
from metarepair.data.workspace import Surroundings
from metarepair.engine import inner
from metarepair.methods import METHODS
from metarepair.methods.base import Method, MethodContext, no_experiences
from metarepair.methods.repaired import RepairedModel, repaired_from
from metarepair.models.build import DeployedModel, state_hash
from metarepair.repairs.stage import Unit, repair_fairly, repair_once, unit_data
from small import deployed_of, failures_of, pixels, small_net
from tasks.datasets import ArrayDataset
from tasks.errors import ConfigError
from tasks.records import Failures

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
NAMES = sorted(METHODS)
TEST, TRAIN = 80, 30


class MadeRows:
    """Corrupted images computed on access from the test split, as in a store without pixels."""

    def __init__(self, test_NHWC_u8: Any) -> None:
        self.test_NHWC_u8 = test_NHWC_u8
        self.shape = test_NHWC_u8.shape

    def __len__(self) -> int:
        return len(self.test_NHWC_u8)

    def __getitem__(self, rows: Any) -> Any:
        return 255 - self.test_NHWC_u8[rows]


@dataclass(frozen=True)
class World:
    """All data of a target: the test split, D_collect (rows 0 to 39), D_fail (rows 40 to 79) and clean images."""

    here: Surroundings
    collect: Failures
    fail: Failures

    @property
    def secrets(self) -> dict[str, list[bytes]]:
        """The data that no method may reach, by name, as the bytes of each image."""
        test = self.here.split("test").images_NHWC
        return {
            "D_fail": [image.tobytes() for image in self.fail.images_NHWC[:]],
            "the test split": [image.tobytes() for image in test],
        }


@pytest.fixture
def world() -> World:
    test, train = pixels(TEST, 0), pixels(TRAIN, 1)
    splits: Any = {
        name: ArrayDataset(
            name="unit",
            split=name,
            images_NHWC=images,
            labels_N=np.random.default_rng(2).integers(3, size=len(images)),
            image_ids_N=np.arange(len(images)),
            classes=("a", "b", "c"),
        )
        for name, images in (("test", test), ("train", train))
    }
    labels, predicted = splits["test"].labels_N, np.zeros(TEST, np.int64)
    mined = failures_of(labels, MadeRows(test), predicted_N=predicted)
    half = np.arange(TEST // 2)
    collect = replace(mined.take(half), images_NHWC=MadeRows(test[: len(half)]))
    return World(
        Surroundings(CONFIG, deployed_of(small_net()), splits), collect, mined.take(half + len(half))
    )


def reachable(*roots: object) -> Iterator[object]:
    """Yield every object reachable from these by attributes, items, closures, defaults and base arrays of views.

    Modules, types and the globals of functions are left out: any code can reach them.
    """
    seen: dict[int, object] = {}
    todo = list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, ModuleType | type):
            continue
        seen[id(thing)] = thing  # kept alive, so that no other object gets its id
        yield thing
        if isinstance(thing, FunctionType):
            todo += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, vars(thing)]
        else:
            todo += gc.get_referents(thing)
        if isinstance(thing, np.ndarray | memoryview):
            todo.append(thing.base if isinstance(thing, np.ndarray) else thing.obj)


def is_reachable(secret: list[bytes], *roots: object) -> bool:
    """Return whether any of these byte strings is in a reachable array, tensor or bytes object."""
    for thing in reachable(*roots):
        if isinstance(thing, torch.Tensor):
            content = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        elif isinstance(thing, np.ndarray | bytes | bytearray):
            content = bytes(thing) if isinstance(thing, bytes | bytearray) else thing.tobytes()
        else:
            continue
        if any(part in content for part in secret):
            return True
    return False


class Reached(Exception):  # noqa: N818  not an error: it ends the repair once its arguments are known
    """Carries the arguments of a method."""


def given_to(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, RepairData, MethodContext]:
    """Return the arguments that the repair stage passes to the method `name`."""

    def look(
        self: Method, deployed: DeployedModel, data: RepairData, context: MethodContext
    ) -> RepairedModel:
        raise Reached(deployed, data, context)

    monkeypatch.setattr(type(METHODS[name]), "repair", look)
    data = unit_data(CONFIG, world.here, [*NAMES], world.collect, 0)
    assert data.clean is not None
    unit = Unit(
        method=name,
        seed=0,
        folder=Path("nowhere"),
        load_meta=lambda: start_of(world),
        load_joint=lambda: start_of(world),
        load_merged=lambda: start_of(world),
    )
    with pytest.raises(Reached) as reached:
        repair_once(unit, CONFIG, data, world.here)
    return reached.value.args  # type: ignore[return-value]


def start_of(world: World) -> Start:
    module = world.here.deployed.module
    return Start(
        parameters={k: v + 1 for k, v in module.named_parameters()}, buffers=dict(module.named_buffers())
    )


def labels_of(failures: Failures) -> list[bytes]:
    return [failures.labels_N.tobytes()]


@pytest.mark.parametrize("name", NAMES)
def test_no_method_can_reach_d_fail_or_the_test_split_from_its_arguments(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = given_to(name, world, monkeypatch)
    for what, secret in world.secrets.items():
        assert not is_reachable(secret, *given), f"{name} can get at {what}"
    given[2].say("a line")  # the callables are those of a real repair, and they work
    assert not is_reachable(world.secrets["D_fail"], *given)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_gets_the_data_that_it_declares_and_nothing_else(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = split_collected(world.collect, CONFIG, 0)
    clean = [image.tobytes() for image in world.here.split("train").images_NHWC]
    given = given_to(name, world, monkeypatch)
    _, data, context = given
    uses = METHODS[name].uses
    images = [whole.learn.images_NHWC[0].tobytes()]
    assert is_reachable(images, *given) == bool({"failures", "unlabelled"} & set(uses))
    assert is_reachable(labels_of(whole.learn), *given) == ("failures" in uses)
    assert is_reachable(labels_of(whole.validation), *given) == ("failures" in uses)
    assert is_reachable(clean, *given) == ("clean" in uses)
    assert (data.clean is not None) == ("clean" in uses)
    if "failures" not in uses:
        assert (data.learn.labels_N == -1).all()
        assert (data.learn.predicted_N == -1).all()
        assert len(data.learn) == (len(whole.learn) if "unlabelled" in uses else 0)
    if "experiences" in uses:
        parameters = context.load_meta().parameters
        assert all(torch.equal(parameters[k], v) for k, v in start_of(world).parameters.items())
    else:
        with pytest.raises(ConfigError, match="given no experiences"):
            context.load_meta()
    if "joint" in uses:
        parameters = context.load_joint().parameters
        assert all(torch.equal(parameters[k], v) for k, v in start_of(world).parameters.items())
    else:
        with pytest.raises(ConfigError, match="no jointly trained weights"):
            context.load_joint()
    if "merged" in uses:
        parameters = context.load_merged().parameters
        assert all(torch.equal(parameters[k], v) for k, v in start_of(world).parameters.items())
    else:
        with pytest.raises(ConfigError, match="no merged weights"):
            context.load_merged()


@pytest.mark.parametrize(
    "way", ["attribute", "closure", "partial", "default", "view", "bound", "tensor", "row"]
)
def test_the_search_finds_planted_secrets(way: str, world: World) -> None:
    data = split_collected(world.collect, CONFIG, 0)
    context = MethodContext(config=CONFIG, seed=0)
    secret, images = world.secrets["D_fail"], world.fail.images_NHWC[:]
    assert not is_reachable(secret, data, context)
    clean = CleanImages(images_NHWC=images, labels_N=world.fail.labels_N)
    whole = np.concatenate([np.zeros_like(images), images])
    planted: dict[str, Any] = {
        "attribute": replace(data, clean=clean),
        "closure": replace(context, say=lambda line: print(line, images)),
        "partial": replace(context, load_meta=partial(no_experiences, images)),
        "default": replace(context, say=lambda line, kept=images: print(line, kept)),
        "view": replace(data, learn=replace(data.learn, images_NHWC=whole[: len(data.learn)])),
        "bound": replace(context, say=[clean].append),
        "tensor": replace(data, clean=torch.from_numpy(images)),
        "row": replace(data, clean={"one": [bytes(images[3])]}),
    }
    assert is_reachable(secret, data, planted[way])


def test_the_search_finds_the_test_split_in_the_objects_of_the_repair_stage(world: World) -> None:
    """The images of an unsplit D_collect come from the test split, and the loader of θ_meta holds the data set."""
    test = world.secrets["the test split"]
    assert is_reachable(test, world.collect)
    assert is_reachable(test, lambda: start_of(world))
    unit = Unit(method="metarepair", seed=0, folder=Path("nowhere"), load_meta=lambda: start_of(world))
    assert is_reachable(test, unit)


def test_a_repair_passes_six_files_from_the_stage_to_the_gradient_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, passed = Path(str(metarepair.__file__)).parent, set[str]()

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            passed.update(
                frame.f_code.co_filename for frame, _ in traceback.walk_stack(inspect.currentframe())
            )
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(inner, "inner_step", watched(inner.inner_step))
    monkeypatch.setattr(repair_data, "semantic_cover", watched(repair_data.semantic_cover))
    monkeypatch.setattr("metarepair.repairs.stage._save", lambda *_: None)
    repair = CONFIG.repair.model_copy(update={"rates": (0.01,), "episodes": 1, "tasks": 1})
    config = CONFIG.model_copy(update={"repair": repair})
    data = unit_data(config, world.here, ["metarepair"], world.collect, 0)
    unit = Unit(method="metarepair", seed=0, folder=Path("nowhere"), load_meta=lambda: start_of(world))
    repair_once(unit, config, data, world.here)
    # The list of docs/architecture.md, "One repair, file by file".
    assert {
        Path(name).relative_to(root).as_posix() for name in passed if Path(name).is_relative_to(root)
    } == {
        "repairs/stage.py",
        "adaptation/repair_data.py",
        "methods/metarepair.py",
        "adaptation/choice.py",
        "adaptation/meta_test.py",
        "engine/inner.py",
    }


class Ruins(Method):
    """Overwrites everything that it is given."""

    name, words, uses, changes, cost = "ruins", "ruins", (), ("weights", "statistics"), "all"

    @torch.no_grad()
    def repair(self, deployed: DeployedModel, data: RepairData, context: MethodContext) -> RepairedModel:  # noqa: ARG002  as methods are called
        assert not deployed.module.training
        for tensor in (*deployed.module.parameters(), *deployed.module.buffers()):
            tensor.zero_()
        deployed.module.train()
        return repaired_from(self.name, deployed.module, context.budget)


def test_the_deployed_dnn_stays_whatever_a_method_does_to_its_own(world: World) -> None:
    deployed = world.here.deployed
    before = state_hash(deployed.module.state_dict())
    model = repair_fairly(
        Ruins(), deployed, split_collected(world.collect, CONFIG, 0), MethodContext(config=CONFIG, seed=0)
    )
    assert not any(v.any() for v in model.state().values())
    assert state_hash(deployed.module.state_dict()) == before
    assert not deployed.module.training


@pytest.mark.parametrize("name", [n for n in NAMES if "clean" in METHODS[n].uses])
@pytest.mark.parametrize(
    "clean", [None, CleanImages(images_NHWC=pixels(0, 0), labels_N=np.empty(0, np.int64))]
)
def test_a_method_that_needs_clean_images_says_that_there_are_none(
    name: str, clean: Any, world: World
) -> None:
    data = replace(split_collected(world.collect, CONFIG, 0), clean=clean)
    with pytest.raises(
        ConfigError,
        match=rf"{name} learns from the clean training split .*, and none is given\. .*clean_training",
    ):
        repair_fairly(METHODS[name], world.here.deployed, data, MethodContext(config=CONFIG, seed=0))
