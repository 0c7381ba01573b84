"""Test that training ends with its epochs or budget, keeps its best state, and resumes bit-identically."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metarepair.adaptation.repair_data import RepairData
from metarepair.config.load import parse_config
from metarepair.engine.vectors import State
from metarepair.methods import training
from metarepair.methods.base import MethodContext
from metarepair.methods.budget import Budget, parse_limit
from metarepair.methods.examples import Examples
from metarepair.methods.training import CHECKS, MethodBatch, Training, TrainingSettings
from metarepair.models.build import state_hash
from small import bright_failures, deployed_of, small_net
from tasks.errors import DivergedError
from tasks.records import Failures

CONFIG = parse_config({"name": "unit", "device": "cpu", "mining": {"experiences": ["fog"]}})
DATA = RepairData(
    target="snow", learn=bright_failures(24, 0, noise=60), validation=bright_failures(30, 1, noise=60)
)


def net(*, norm: bool = True) -> nn.Module:
    return small_net(norm=norm, dropout=0.3)


class CrossEntropy:
    """Cross entropy that records its arguments and the rate of each step."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.rates, self.batches = sign, list[float](), list[MethodBatch]()
        self.training: Training | None = None

    def __call__(self, module: nn.Module, batch: MethodBatch) -> Tensor:
        assert module.training
        assert self.training is not None
        self.batches.append(batch)
        self.rates.append(self.training.optimizer.param_groups[0]["lr"])
        x_BCHW = self.training.deployed.normalise(batch.images_BHWC_u8)
        return self.sign * cross_entropy(module(x_BCHW), batch.labels_B)


def made(
    loss: Any = None,
    *,
    context: MethodContext | None = None,
    module: nn.Module | None = None,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Training:
    module = module or net()
    deployed = deployed_of(copy.deepcopy(module))
    loss = loss or CrossEntropy()
    given = {"epochs": 5, "batch_size": 8, "rate": 0.05} | (settings or {})
    made = Training(
        module,
        deployed,
        Examples(DATA.learn),
        DATA,
        context or around(),
        TrainingSettings(**given),
        loss,
        method="sensei",
        **more,
    )
    loss.training = made
    return made


def around(budget: Budget | None = None, folder: Path | None = None) -> MethodContext:
    return MethodContext(config=CONFIG, seed=1, budget=budget or Budget(), folder=folder)


def digest(module: nn.Module) -> str:
    return state_hash(module.state_dict())


def test_it_ends_with_its_epochs_where_there_is_no_budget() -> None:
    loss = CrossEntropy()
    one = made(loss)
    one.run()
    assert (one.step, one.context.budget.gradient_steps, one.context.budget.images_seen) == (15, 15, 15 * 8)
    rows = np.concatenate([batch.rows_B for batch in loss.batches])
    assert all(sorted(rows[start : start + 24]) == list(range(24)) for start in range(0, 120, 24))
    for batch in loss.batches:
        assert np.array_equal(batch.images_BHWC_u8, DATA.learn.images_NHWC[batch.rows_B])
        assert batch.labels_B.tolist() == DATA.learn.labels_N[batch.rows_B].tolist()


@pytest.mark.parametrize(("limit", "steps"), [("4steps", 4), ("40images", 5), ("1000steps", 15)])
def test_it_ends_with_the_budget_where_that_is_first(limit: str, steps: int) -> None:
    one = made(context=around(Budget(parse_limit(limit))))
    one.run()
    assert one.context.budget.gradient_steps == steps


def test_it_ends_when_its_seconds_are_over() -> None:
    now = [0.0]

    class Slow(CrossEntropy):
        def __call__(self, module: nn.Module, batch: MethodBatch) -> Tensor:
            now[0] += 1.0
            return super().__call__(module, batch)

    one = made(Slow(), context=around(Budget(parse_limit("6s"), clock=lambda: now[0])))
    one.run()
    assert one.step == 6


def test_forward_passes_of_an_example_are_counted() -> None:
    one = made(images_per_example=3, context=around(Budget(parse_limit("48images"))))
    one.run()
    assert (one.step, one.context.budget.images_seen) == (2, 48)


@pytest.mark.parametrize(("limit", "steps"), [(None, 15), ("6steps", 6)])
def test_a_cosine_falls_over_the_share_that_ends_the_training(limit: str | None, steps: int) -> None:
    loss = CrossEntropy()
    made(loss, context=around(Budget(parse_limit(limit)) if limit else None)).run()
    want = [0.05 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert loss.rates == pytest.approx(want)


def test_a_constant_rate_stays() -> None:
    loss = CrossEntropy()
    made(loss, settings={"schedule": "constant"}).run()
    assert set(loss.rates) == {0.05}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_its_steps_are_those_of_torch(optimizer: Any) -> None:
    loss = CrossEntropy()
    one = made(
        loss,
        settings={"optimizer": optimizer, "weight_decay": 0.01, "schedule": "constant"},
        module=net(norm=False),
    )
    one.module[2].p = 0.0  # type: ignore[index]
    one.run()
    module = net(norm=False).train()
    module[2].p = 0.0  # type: ignore[index]
    options = {"lr": 0.05, "weight_decay": 0.01}
    plain: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), **options)
    if optimizer == "sgd":
        plain = torch.optim.SGD(module.parameters(), momentum=0.9, nesterov=True, **options)
    ends = [copy.deepcopy(module.state_dict())]
    for batch in loss.batches:
        plain.zero_grad()
        cross_entropy(module(one.deployed.normalise(batch.images_BHWC_u8)), batch.labels_B).backward()  # type: ignore[no-untyped-call]
        plain.step()
        ends.append(copy.deepcopy(module.state_dict()))
    found = one.module.state_dict()
    assert any(all(torch.allclose(found[k], v, atol=1e-6) for k, v in end.items()) for end in ends[1:])


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[State]]:
    """A list of validation accuracies to return in turn, and the list of judged states."""
    scores: list[float] = []
    states: list[State] = []

    def judge(deployed: Any, parameters: State, buffers: State, failures: Failures) -> float:
        assert failures is DATA.validation
        states.append({**parameters, **buffers})
        return scores[min(len(states), len(scores)) - 1]

    monkeypatch.setattr(training, "accuracy_on", judge)
    return scores, states


def test_the_state_that_is_best_on_validation_is_kept_and_the_first_of_equals(
    judged: tuple[list[float], list[State]],
) -> None:
    scores, states = judged
    scores += [0.2, 0.5, 0.9, 0.4, 0.9, 0.1]
    one = made()
    module = one.run()
    assert not module.training
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert len(states) == 1 + 15  # the initial state, then each step, as steps are fewer than CHECKS
    assert all(torch.equal(found[k], v) for k, v in states[2].items())
    assert not all(torch.equal(found[k], v) for k, v in states[3].items())


def test_validation_runs_a_fixed_number_of_times(judged: tuple[list[float], list[State]]) -> None:
    scores, states = judged
    scores += [0.5]
    made(settings={"epochs": 100}).run()
    assert len(states) == 1 + CHECKS


def test_patience_ends_training_after_several_checks_without_gain(
    judged: tuple[list[float], list[State]],
) -> None:
    scores, states = judged
    scores += [0.2, 0.3, 0.6, 0.6, 0.5, 0.4, 0.5, 0.9]
    one = made(settings={"epochs": 100}, patience=4)
    one.run()
    assert len(states) == 3 + 4
    assert one.step == 300 * 6 // CHECKS


def test_a_training_that_only_harms_leaves_the_deployed_dnn() -> None:
    module = net()
    made(module=module, settings={"rate": 0.1}).run()
    learned = training.accuracy_on(*judging(module))
    assert learned > 0.6
    before = digest(module)
    harmed = made(CrossEntropy(sign=-1.0), module=copy.deepcopy(module), settings={"rate": 0.5}).run()
    assert digest(harmed) == before


def judging(module: nn.Module) -> Sequence[Any]:
    deployed = deployed_of(module)
    return deployed, dict(module.named_parameters()), dict(module.named_buffers()), DATA.validation


def test_training_does_not_change_the_deployed_dnn() -> None:
    module = net()
    deployed = deployed_of(module)
    own, loss, before = copy.deepcopy(module), CrossEntropy(), digest(module)
    one = Training(
        own,
        deployed,
        Examples(DATA.learn),
        DATA,
        around(),
        TrainingSettings(epochs=3, rate=0.1),
        loss,
        method="sensei",
    )
    loss.training = one
    assert digest(one.run()) != before == digest(module)
    assert one.deployed.module is own


def test_only_the_named_parameters_move() -> None:
    module, before = net(), net()
    made(module=module, trainable=["6.weight"], settings={"rate": 0.3}).run()
    moved = {k for k, p in module.named_parameters() if not torch.equal(p, before.get_parameter(k))}
    assert moved == {"6.weight"}


@pytest.mark.parametrize("steps", [2, 400])
def test_a_loss_that_is_not_finite_is_reported_even_in_a_short_training(steps: int) -> None:
    def broken(module: nn.Module, batch: MethodBatch) -> Tensor:
        x_BCHW = torch.from_numpy(batch.images_BHWC_u8).permute(0, 3, 1, 2).float()
        return module(x_BCHW).sum() * math.inf * 0  # type: ignore[no-any-return]

    class Broken:
        training: Any = None
        __call__ = staticmethod(broken)

    one = made(Broken(), context=around(Budget(parse_limit(f"{steps}steps"))), settings={"epochs": 1000})
    with pytest.raises(
        DivergedError, match=r"by sensei diverged.* became nan in step .*Lower methods\.sensei\.rate"
    ):
        one.run()


class InterruptedBudget(Budget):
    """Simulates the end of the process after `after` steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def spend(self, *, images: int = 0, steps: int = 0) -> None:
        super().spend(images=images, steps=steps)
        if self.gradient_steps == self.after:
            raise KeyboardInterrupt


class Counts(CrossEntropy):
    """A loss whose weight grows with its call count, which is part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.called = torch.zeros(())

    def __call__(self, module: nn.Module, batch: MethodBatch) -> Tensor:
        self.called = self.called + 1
        return super().__call__(module, batch) * (1 + 0.1 * self.called)

    def state(self) -> State:
        return {"called": self.called}

    def load(self, state: State) -> None:
        self.called = state["called"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("after", [1, 2, 7, 15])
def test_a_resumed_training_equals_an_undisturbed_one_to_the_bit(
    optimizer: Any, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    settings = {"optimizer": optimizer, "rate": 0.02}
    loss = Counts()
    whole = made(loss, settings=settings, remembers=loss)
    whole.run()
    first = Counts()
    with pytest.raises(KeyboardInterrupt):
        made(
            first, settings=settings, remembers=first, context=around(InterruptedBudget(after), tmp_path)
        ).run()
    again, lines = Counts(), list[str]()
    context = replace(around(folder=tmp_path), say=lines.append)
    resumed = made(again, settings=settings, remembers=again, context=context)
    resumed.run()
    assert lines == ([f"sensei: resumes from step {after - 1}"] if after > 1 else [])
    assert digest(resumed.module) == digest(whole.module)
    assert resumed.best_accuracy == whole.best_accuracy
    assert len(again.batches) == 15 - (after - 1)
    assert (context.budget.images_seen, context.budget.gradient_steps) == (120, 15)


def test_seconds_before_an_interruption_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    made(context=around(folder=tmp_path)).run()
    now = [0.0]
    folder_budget = Budget(parse_limit("100s"), clock=lambda: now[0])
    saved = training.read_tensors(tmp_path / training.CHECKPOINT)
    training.save_weights(
        tmp_path / training.CHECKPOINT, saved | {"count.seconds": torch.tensor(70.0).double()}, {}
    )
    made(context=around(folder_budget, tmp_path)).run()
    assert folder_budget.seconds == 70.0


def test_a_training_that_patience_ended_does_not_continue_when_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: tuple[list[float], list[State]]
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    judged[0].extend([0.2, 0.9, 0.1])
    whole = made(settings={"epochs": 50}, patience=3, context=around(folder=tmp_path))
    whole.run()
    again = CrossEntropy()
    resumed = made(again, settings={"epochs": 50}, patience=3, context=around(folder=tmp_path))
    resumed.run()
    assert not again.batches
    assert digest(resumed.module) == digest(whole.module)


def test_no_checkpoint_is_written_without_a_folder_or_before_the_interval(tmp_path: Path) -> None:
    made(context=around(folder=tmp_path)).run()
    assert list(tmp_path.iterdir()) == []


def test_torchs_own_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    made().run()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_shows_share_loss_validation_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAID_S", 0.0)
    lines: list[str] = []
    made(context=replace(around(), say=lines.append)).run()
    assert len(lines) == 15
    assert lines[0].startswith("sensei: 7% of the training, loss ")
    assert all("validation " in line and line.endswith(" s left") for line in lines)
