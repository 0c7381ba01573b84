"""Test Apricot: its update against the paper's loop, the kept candidate, and that the reduced models differ."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.repair import RepairConfig
from metarepair.data.clean_images import CleanImages
from metarepair.engine.stateless import seeded
from metarepair.engine.vectors import State
from metarepair.methods import method_settings, training
from metarepair.methods.apricot import walk as apricot_walk
from metarepair.methods.apricot.method import ApricotSettings
from metarepair.methods.apricot.models import load_models, path_of, reinitialise, subset
from metarepair.methods.apricot.walk import Coordinates, Strategy, Walk, mixture
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.registry import get_method
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel, read_tensors, state_hash
from metarepair.repairs.stage import repair_fairly
from small import deployed_of, failures_of, pixels
from tasks.errors import ConfigError, DataError, DivergedError, StageError
from tasks.records import Failures
from tasks.storage.sealed_parts import seal

REDUCED: dict[str, Any] = {"models": 3, "per_class": 4, "epochs": 2, "batch_size": 5, "rate": 0.01}
SMALL: dict[str, Any] = {"reduced": REDUCED, "epochs": 2, "batch_size": 8, "adjust_batch": 4, "patience": 3}
CPU = torch.device("cpu")
STRATEGIES: tuple[Strategy, ...] = ("both", "correct", "incorrect")


class Scaled(nn.Module):
    """Has parameters that no reset changes, and a buffer that is equal in all models."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 4).reshape(4, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("table", torch.arange(4.0).reshape(4, 1, 1) / 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scaled: Tensor = (x_BCHW * self.gamma + self.get_buffer("table")) * self.temperature
        return scaled


def net(seed: int = 0, *, norm: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    with seeded(CPU, seed):
        body = [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            Scaled(),
            nn.ReLU(),
        ]
        module = nn.Sequential(*body, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
        if norm:
            module.get_buffer("1.running_mean").normal_(0, 0.2)
            module.get_buffer("1.running_var").uniform_(0.2, 2)
    return module.eval()


def deployed(module: nn.Module | None = None) -> DeployedModel:
    return deployed_of(module or net())


def failures(number: int, seed: int) -> Failures:
    labels = np.random.default_rng(seed + 50).integers(3, size=number)
    return failures_of(labels, pixels(number, seed), predicted_N=np.zeros(number, np.int64))


def data(*, learn: int = 10, clean: int = 24) -> RepairData:
    split = CleanImages(images_NHWC=pixels(clean, 1), labels_N=np.arange(clean) % 3)
    return RepairData(target="snow", learn=failures(learn, 0), validation=failures(9, 2), clean=split)


def context(prepared: Path | None, **changed: Any) -> MethodContext:
    own = {k: changed.pop(k) for k in list(changed) if k not in ("seed", "budget", "folder", "map", "say")}
    given = method_settings("apricot", SMALL | own)
    return MethodContext(
        config=RepairConfig(), seed=changed.pop("seed", 3), settings=given, prepared=prepared, **changed
    )


def prepare(folder: Path, model: DeployedModel | None = None, **changed: Any) -> MethodContext:
    around = context(folder, **changed)
    known = data()
    none = replace(known, learn=failures(0, 0), validation=failures(0, 0))
    get_method("apricot").prepare(model or deployed(), none, around)
    return around


def repaired(around: MethodContext, model: DeployedModel | None = None) -> RepairedModel:
    return repair_fairly(get_method("apricot"), model or deployed(), data(), around)


def states(*modules: nn.Module) -> list[tuple[State, State]]:
    return [
        (
            {k: v.detach().clone() for k, v in module.named_parameters()},
            {k: v.detach().clone() for k, v in module.named_buffers()},
        )
        for module in modules
    ]


def walk_of(model: DeployedModel, models: Sequence[nn.Module], **changed: Any) -> Walk:
    settings: dict[str, Any] = {"batch_size": 4, "rate": 0.2, "strategy": "both", "patience": 3} | changed
    around = settings.pop("context", context(None))
    known = settings.pop("data", data())
    return Walk(model, states(*models), known, around, **settings)


def gap(a: State, b: State) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_is_the_papers_update_for_one_failure_after_the_other(strategy: Strategy) -> None:
    generator = np.random.default_rng(4)
    w_P, models_MP = generator.normal(size=7), generator.normal(size=(5, 7))
    right_MB = generator.random((5, 12)) < 0.4
    mixed = mixture(right_MB, rate=0.05, strategy=strategy)
    found_P = mixed.own * w_P + mixed.models_M @ models_MP
    expected_P = w_P
    for right_M in right_MB.T:
        a, b = right_M.sum(), (~right_M).sum()
        if a == 0 or b == 0:
            continue
        d_right_P = expected_P - models_MP[right_M].mean(0)
        d_wrong_P = expected_P - models_MP[~right_M].mean(0)
        change_P = 0 * w_P
        if strategy in ("both", "correct"):
            change_P = change_P + a / (a + b) * d_right_P
        if strategy in ("both", "incorrect"):
            change_P = change_P - b / (a + b) * d_wrong_P
        expected_P = expected_P - 0.05 * change_P
    assert np.abs(expected_P - w_P).max() > 0.01
    np.testing.assert_allclose(found_P, expected_P, rtol=0, atol=1e-14)
    assert mixed.own + mixed.models_M.sum() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_update_goes_toward_the_right_models_and_away_from_the_wrong_ones(strategy: Strategy) -> None:
    w_P, right_P, wrong_P = np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0])
    mixed = mixture(np.array([[True], [False]]), rate=0.1, strategy=strategy)
    moved_P = mixed.own * w_P + mixed.models_M @ np.stack([right_P, wrong_P])
    toward, away = moved_P
    assert (toward > 0) == (strategy != "incorrect")
    assert (away < 0) == (strategy != "correct")
    assert min(toward, -away) >= 0


def test_a_failure_on_which_all_models_agree_changes_nothing() -> None:
    agreed = np.array([[True, False], [True, False]])
    assert not mixture(agreed, rate=0.1, strategy="both").moves
    divided = np.array([[True, True, False], [True, False, False]])
    alone = mixture(divided[:, 1:2], rate=0.1, strategy="both")
    np.testing.assert_array_equal(mixture(divided, rate=0.1, strategy="both").models_M, alone.models_M)


def linear(weight: Tensor) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    with torch.no_grad():
        module.get_parameter("1.weight").copy_(weight)
        module.get_parameter("1.bias").zero_()
    return module.eval()


def test_a_walk_repairs_by_the_difference_between_right_and_wrong_models() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 192, generator=generator, dtype=torch.float64)
    teacher = deployed(linear(truth))
    known = data()

    def labelled(some: Failures) -> Failures:
        return replace(some, labels_N=teacher.logits(np.asarray(some.images_NHWC)).argmax(1).numpy())

    known = replace(known, learn=labelled(known.learn), validation=labelled(known.validation))
    model = deployed(linear(-0.05 * truth))
    walk = walk_of(model, [linear(truth), linear(-truth)], data=known, rate=0.02, patience=40)
    found = walk.run()
    assert walk.before < 0.2
    assert walk.accuracy > 0.9
    assert float((found["1.weight"] * truth).sum()) > 0
    away = walk_of(model, [linear(-truth), linear(-2 * truth)], data=known, rate=0.02, patience=40)
    assert away.run() == {}  # no model is right about any failure


def test_models_are_judged_with_their_own_buffers() -> None:
    model, others, learn = deployed(), [net(1), net(2)], data().learn
    for number, other in enumerate(others):
        other.get_buffer("1.running_mean").copy_(torch.tensor([3.0, -3.0, 3.0, -3.0]) * (-1) ** number)
    walk = walk_of(model, others)
    walk.run()
    for right_N, other in zip(walk.right, others, strict=True):

        def right(module: nn.Module) -> list[bool]:
            predicted_N = deployed(module).logits(np.asarray(learn.images_NHWC)).argmax(1).numpy()
            return list(predicted_N == learn.labels_N)

        assert list(right_N) == right(other)
        for key, buffer in model.module.named_buffers():
            other.get_buffer(key).copy_(buffer)
        assert list(right_N) != right(other)


def test_a_candidate_is_judged_with_its_own_moved_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[State] = []

    def judge(_: DeployedModel, parameters: State, buffers: State, __: Failures) -> float:
        judged.append({k: v.clone() for k, v in (parameters | buffers).items()})
        return float(min(len(judged), 4))  # three improvements, then none

    monkeypatch.setattr(apricot_walk, "accuracy_on", judge)
    walk = walk_of(deployed(), [net(1), net(2)])
    walk.right = [np.ones(10, np.bool_), np.zeros(10, np.bool_)]
    kept = walk.run()
    assert walk.gains == 3
    assert all(torch.equal(judged[3][k], v) for k, v in kept.items())
    assert judged[0]["1.running_mean"].ne(judged[1]["1.running_mean"]).all()


def test_statistics_move_with_the_weights_and_variances_stay_positive() -> None:
    module, others = net(dtype=torch.float64), [net(seed, dtype=torch.float64) for seed in (1, 2)]
    module.get_buffer("1.running_var").fill_(0.01)
    others[1].get_buffer("1.running_var").fill_(50.0)
    every = [{**a, **b} for a, b in states(module, *others)]
    coordinates = Coordinates(module, every[1:])
    own, share_M = 1.0, [0.1, -0.1]
    mixed_P = own * coordinates.vector(every[0])
    for share, other in zip(share_M, every[1:], strict=True):
        mixed_P = mixed_P + share * coordinates.vector(other)
    found = coordinates.state(mixed_P)

    def straight(key: str) -> Tensor:
        return every[0][key] + 0.1 * every[1][key] - 0.1 * every[2][key]

    for key in ("0.weight", "1.running_mean", "6.bias"):
        assert float((found[key] - straight(key)).abs().max()) < 1e-14
    assert float(straight("1.running_var").max()) < 0 < float(found["1.running_var"].min())
    deviations = [state["1.running_var"] + 1e-5 for state in every]
    expected = deviations[0] * (deviations[1] / deviations[2]) ** 0.1 - 1e-5
    assert float((found["1.running_var"] - expected).abs().max()) < 1e-14


def test_tensors_equal_in_all_models_and_integer_tensors_stay_bit_identical() -> None:
    module, other = net(), net(1)
    other.get_buffer("1.num_batches_tracked").add_(7)
    parameters, buffers = states(other)[0]
    names = set(Coordinates(module, [parameters | buffers]).like)
    assert not names & {"2.table", "2.gamma", "2.temperature", "1.num_batches_tracked", "1.weight"}
    assert {"0.weight", "1.running_mean", "1.running_var", "6.weight", "6.bias"} <= names


def test_a_state_survives_the_conversion_to_a_vector_and_back() -> None:
    module, other = net(dtype=torch.float64), net(1, dtype=torch.float64)
    (own, own_buffers), (parameters, buffers) = states(module, other)
    coordinates = Coordinates(module, [parameters | buffers])
    again = coordinates.state(coordinates.vector(own | own_buffers))
    assert gap(again, own | own_buffers) < 1e-14


def accuracies(values: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make validation return these accuracies in turn, then repeat the last one."""
    left = list(values)
    monkeypatch.setattr(apricot_walk, "accuracy_on", lambda *_: left.pop(0) if len(left) > 1 else left[0])


def test_later_candidates_do_not_change_the_kept_one(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [net(seed) for seed in (1, 2, 3)]
    accuracies([0.0, 0.5, 0.2], monkeypatch)
    once = walk_of(deployed(), others, patience=1)
    first = once.run()
    assert once.gains == 1
    accuracies([0.0, 0.5, 0.2], monkeypatch)
    long = walk_of(deployed(), others, patience=9)
    found = long.run()
    assert long.batch > once.batch
    assert state_hash(found) == state_hash(first)
    accuracies([0.0, 0.5, 0.2, 0.6, 0.0], monkeypatch)
    further = walk_of(deployed(), others, patience=9)
    assert further.run()["0.weight"].ne(first["0.weight"]).any()
    assert further.gains == 2


def test_a_walk_leaves_the_dnn_and_shares_no_memory_with_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies([0.0, 0.5, 0.2], monkeypatch)
    model = deployed()
    before = state_hash(model.module.state_dict())
    walk = walk_of(model, [net(1), net(2)])
    found = walk.run()
    assert state_hash(model.module.state_dict()) == before
    kept = walk.w_P.clone()
    for tensor in (*found.values(), *model.module.parameters()):
        tensor.detach().zero_()
    assert torch.equal(walk.w_P, kept)


def test_nothing_is_kept_where_validation_does_not_improve(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies([0.3], monkeypatch)
    walk = walk_of(deployed(), [net(1), net(2)], patience=5)
    assert walk.run() == {}
    assert walk.batch == 5
    assert walk.words.startswith("0 of 5 adjustments kept")


def test_each_reduced_model_is_trained_once_and_they_differ(tmp_path: Path) -> None:
    around = prepare(tmp_path)
    files = [path_of(tmp_path, number) for number in range(3)]
    made = [state_hash(read_tensors(path)) for path in files]
    assert len(set(made)) == 3
    stamps = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    asked: list[Any] = []

    def mapped(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        asked.extend(items)
        again = pickle.loads(pickle.dumps(work))  # as when it is sent to another process
        return map(again, pickle.loads(pickle.dumps(items)))

    resumed = prepare(tmp_path, map=mapped)
    assert [part.number for part in asked] == [1]
    assert [state_hash(read_tensors(path)) for path in files] == made
    assert [files[n].stat().st_mtime_ns for n in (0, 2)] == [stamps[0], stamps[2]]
    assert around.budget.images_seen == resumed.budget.images_seen == 3 * 2 * 3 * 5
    assert around.budget.gradient_steps == 3 * 2 * 3


def test_a_damaged_model_or_one_with_other_settings_is_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    prepare(tmp_path)
    first = path_of(tmp_path, 0)
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    prepare(tmp_path, say=lines.append)
    assert first.read_bytes() == whole
    assert sum("damaged" in line for line in caplog.messages) == 1
    assert any("reduced model 1 of 3" in line and "0 s left" in line for line in lines)
    prepare(tmp_path, reduced=REDUCED | {"epochs": 1})
    assert first.read_bytes() != whole


def test_preparing_leaves_the_deployed_dnn_as_it_is(tmp_path: Path) -> None:
    model = deployed()
    before = state_hash(model.module.state_dict())
    prepare(tmp_path, model)
    assert state_hash(model.module.state_dict()) == before
    assert not model.module.training


def test_a_subset_is_balanced_over_classes_and_differs_between_models() -> None:
    labels_N = np.arange(60) % 3
    first, second = (subset(labels_N, per_class=5, generator=np.random.default_rng(seed)) for seed in (0, 1))
    assert np.bincount(labels_N[first]).tolist() == [5, 5, 5]
    assert len(set(first.tolist())) == 15
    assert first.tolist() != second.tolist()


def test_a_random_start_keeps_only_the_deployed_weights_that_it_lists() -> None:
    module, before = net(norm=True), states(net(norm=True))[0][0]
    with torch.no_grad():
        module.get_parameter("1.weight").fill_(0.3)
    with seeded(CPU, 5):
        drawn = reinitialise(module)
    assert drawn == ["2.gamma"]
    for key in ("0.weight", "0.bias", "2.gamma", "6.weight", "6.bias"):
        assert module.get_parameter(key).ne(before[key]).all()
    assert module.get_parameter("1.weight").eq(1).all()
    assert module.get_buffer("1.running_mean").eq(0).all()
    assert module.get_parameter("2.temperature").eq(0.7).all()
    with seeded(CPU, 5):
        again = net(norm=True)
        reinitialise(again)
    assert torch.equal(again.get_parameter("0.weight"), module.get_parameter("0.weight"))


def test_a_tensor_that_no_module_resets_is_drawn_by_its_mean_and_deviation() -> None:
    module = nn.ParameterList([torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3 + 2])
    old = module[0].detach().clone()
    with seeded(CPU, 1):
        assert reinitialise(module) == ["0"]
    new = module[0].detach()
    assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.2)
    assert float(new.std()) == pytest.approx(float(old.std()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([old, new]))[0, 1])) < 0.06


def test_a_deployed_start_begins_with_the_deployed_weights(tmp_path: Path) -> None:
    settings = REDUCED | {"start": "deployed", "rate": 1e-9}
    prepare(tmp_path, reduced=settings)
    given = context(None, reduced=settings).settings
    assert isinstance(given, ApricotSettings)
    for parameters, buffers in load_models(tmp_path, deployed(), given.reduced):
        assert gap(parameters, states(net())[0][0]) < 1e-6
        assert buffers["1.num_batches_tracked"] == 6


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_seeds_repair_to_equal_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: bool, dtype: torch.dtype
) -> None:
    model, judged = deployed(net(norm=norm, dtype=dtype)), count(1)
    monkeypatch.setattr(training, "accuracy_on", lambda *_: float(next(judged)))  # rises, so training is kept
    prepare(tmp_path, model)
    one, two = (repaired(context(tmp_path, budget=Budget(parse_limit("4steps"))), model) for _ in range(2))
    assert state_hash(one.state()) == state_hash(two.state())
    assert one.gradient_steps == 4
    assert one.images_seen == 3 * 10 + 4 * 8
    assert one.state()["0.weight"].dtype == dtype
    other = repaired(context(tmp_path, seed=4, budget=Budget(parse_limit("4steps"))), model)
    assert state_hash(other.state()) != state_hash(one.state())


def test_training_begins_where_the_adjustment_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    accuracies([0.0, 0.5, 0.2], monkeypatch)
    monkeypatch.setattr(training, "accuracy_on", lambda *_: 0.5)  # so that training is not kept
    around = context(tmp_path)
    found = repaired(around)
    given = around.settings
    assert isinstance(given, ApricotSettings)
    accuracies([0.0, 0.5, 0.2], monkeypatch)
    loaded = load_models(tmp_path, deployed(), given.reduced)
    walk = Walk(
        deployed(), loaded, data(), context(None), batch_size=4, rate=1e-3, strategy="both", patience=3
    )
    adjusted = walk.run()
    assert gap(adjusted, states(net())[0][0] | states(net())[0][1]) > 0
    assert all(torch.equal(found.state()[k], v) for k, v in adjusted.items())
    assert found.notes == (walk.words,)
    assert found.gradient_steps == 2 * 5  # trained all the same


def test_half_of_a_budget_is_left_for_training(tmp_path: Path) -> None:
    prepare(tmp_path)
    found = repaired(context(tmp_path, budget=Budget(parse_limit("40images"))))
    assert "by 2 reduced models" in found.notes[0]  # ten failures each; a third model would exceed the half
    assert found.gradient_steps == 3


class KilledError(Exception):
    """Kills a repair at a chosen point."""


@pytest.mark.parametrize("when", [2, 5, 8])
def test_an_interrupted_walk_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    monkeypatch.setattr(apricot_walk, "CHECKPOINT_S", 0.0)
    others = [net(seed) for seed in (1, 2, 3)]

    def judged(_: DeployedModel, parameters: State, *__: Any) -> float:
        return float(parameters["6.weight"].sum() * 1000 % 1)  # an improvement now and then

    monkeypatch.setattr(apricot_walk, "accuracy_on", judged)
    whole = walk_of(deployed(), others, patience=6)
    expected = whole.run()
    assert whole.gains
    (tmp_path / "unit").mkdir()
    folder, calls = tmp_path / "unit", [0]

    def dies(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == when:
            raise KilledError
        return judged(*arguments)

    monkeypatch.setattr(apricot_walk, "accuracy_on", dies)
    with pytest.raises(KilledError):
        walk_of(deployed(), others, patience=6, context=context(None, folder=folder)).run()
    monkeypatch.setattr(apricot_walk, "accuracy_on", judged)
    around = context(None, folder=folder)
    resumed = walk_of(deployed(), others, patience=6, context=around)
    assert state_hash(resumed.run()) == state_hash(expected)
    assert resumed.words == whole.words
    assert around.budget.images_seen == 30


def test_identical_models_are_refused(tmp_path: Path) -> None:
    around = prepare(tmp_path)
    third = path_of(tmp_path, 2)
    third.write_bytes(path_of(tmp_path, 0).read_bytes())
    seal(third, {})
    with pytest.raises(DataError, match=r"reduced-002.* and .*reduced-000.* are the same model"):
        repaired(around)


def test_missing_models_and_those_of_another_dnn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none are prepared.*metarepair compare"):
        repaired(context(None))
    around = prepare(tmp_path)
    with pytest.raises(DataError, match=r"does not fit this DNN: 5 tensors .*first: 1.bias"):
        repaired(around, deployed(net(norm=False)))
    path_of(tmp_path, 1).unlink()
    with pytest.raises(StageError, match=r"1 of apricot's 3 reduced models are missing.*reduced-001"):
        repaired(around)


def test_impossible_data_and_settings_are_refused_in_a_paragraph(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"per_class=9, and the clean training split has 8 images of class 0"
    ):
        prepare(tmp_path, reduced=REDUCED | {"per_class": 9})
    method, none = get_method("apricot"), data(clean=0)
    with pytest.raises(ConfigError, match="and there is none"):
        method.prepare(deployed(), none, context(tmp_path))
    with pytest.raises(DataError, match="learning part of D_collect has none"):
        method.repair(deployed(), data(learn=0), prepare(tmp_path))
    with pytest.raises(ConfigError, match=r"adjust_rat.*adjust_rate"):
        method_settings("apricot", {"adjust_rat": 0.1})
    with pytest.raises(ConfigError, match="reduced"):
        method_settings("apricot", {"reduced": {"models": 1}})


def test_a_diverging_reduced_model_is_named(tmp_path: Path) -> None:
    module = net()
    with torch.no_grad():
        module.get_parameter("6.weight").fill_(float("nan"))
    with pytest.raises(DivergedError, match="reduced model 1 diverged"):
        prepare(tmp_path, deployed(module), reduced=REDUCED | {"start": "deployed"})


def test_the_published_numbers_are_the_defaults() -> None:
    given = method_settings("apricot", {})
    assert isinstance(given, ApricotSettings)
    made = given.reduced
    assert (made.models, made.per_class, made.epochs, made.batch_size, made.rate) == (20, 1000, 60, 128, 2e-4)
    assert (made.start, given.strategy, given.adjust_batch, given.adjust_rate) == ("random", "both", 20, 1e-3)
    assert (given.optimizer, given.rate, given.patience) == ("adam", 2e-4, 100)
    assert pickle.loads(pickle.dumps(given)) == given
