"""Test the trainer on a small net: outer optimizers, schedules, skipped episodes, resuming and prefetching."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from metarepair.config.load import parse_config
from metarepair.config.optimizers import OPTIMIZERS
from metarepair.config.run import Config
from metarepair.data.lookahead import Lookahead
from metarepair.engine.types import Batch, TaskBatch
from metarepair.engine.vectors import flatten
from metarepair.meta_training.meta_train import MetaTrainer, meta_train
from metarepair.meta_training.outer import outer_loss, outer_order, outer_rate
from metarepair.runs.context import LocalContext
from tasks.errors import ConfigError, DivergedError, StageError
from waiting import LIMIT_S


def settings(*, inner: dict[str, Any] | None = None, **train: Any) -> Config:
    values = {"episodes": 6, "round_episodes": 3, "tasks": 2, "outer_rate": 0.01} | train
    return parse_config(
        {
            "name": "unit",
            "device": "cpu",
            "mining": {"experiences": ["fog"]},
            "inner": {"steps": 2, "rate": 0.1} | (inner or {}),
            "train": values,
        }
    )


class Source:
    """Random tasks of 8-px images; those of the `broken` episodes are not finite."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.2), nn.Flatten())
        self.deployed = SimpleNamespace(module=nn.Sequential(*body, nn.Linear(144, 3)))
        self.broken = broken
        self.made: list[tuple[int, int]] = []

    def task(self, episode: int, slot: int) -> TaskBatch:
        self.made.append((episode, slot))
        generator = torch.Generator().manual_seed(100 * episode + slot)
        images = torch.randn(2, 6, 3, 8, 8, generator=generator)
        if episode in self.broken:
            images[0, 0, 0, 0, 0] = torch.nan
        parts = [Batch(images_BCHW=i, labels_B=torch.arange(6) % 3, seed=episode) for i in images]
        return TaskBatch(support=parts[0], query=parts[1])


def trainer(tmp_path: Path, config: Config, source: Source | None = None) -> MetaTrainer:
    context = LocalContext(folder=tmp_path, device=torch.device("cpu"))
    return MetaTrainer(source or Source(), config, context)  # type: ignore[arg-type]


def after(made: MetaTrainer, episodes: int) -> torch.Tensor:
    for _ in range(episodes):
        made.run_episode()
    made.close()
    return torch.cat([flatten(made.learned), flatten({k: v.float() for k, v in made.buffers.items()})])


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"betas": [0.8, 0.95], "amsgrad": True},
    "RMSprop": {"centered": True, "momentum": 0.5},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_resumes_from_a_checkpoint_with_the_same_bits(tmp_path: Path, name: str) -> None:
    inner = {"learned_rates": True, "momentum": 0.5, "dropout": True}
    config = settings(inner=inner, outer_optimizer=name, outer_options=OPTIONS.get(name, {}))
    whole = after(trainer(tmp_path / "whole", config), 6)
    first = trainer(tmp_path / "cut", config)
    half = after(first, 3)
    first.save(tmp_path / "saved")
    second = trainer(tmp_path / "cut", config)
    second.load(tmp_path / "saved")
    assert torch.equal(after(second, 3), whole)
    assert not torch.equal(half, whole)
    assert second.history[:3] == first.history


def test_plain_sgd_has_no_state_and_resumes_as_well(tmp_path: Path) -> None:
    config = settings(outer_optimizer="SGD")
    made = trainer(tmp_path, config)
    after(made, 1)
    made.save(tmp_path / "saved")
    again = trainer(tmp_path, config)
    again.load(tmp_path / "saved")
    assert torch.equal(flatten(again.learned), flatten(made.learned))


def test_factors_are_learned_and_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings(inner={"learned_rates": True}))
    after(made, 3)
    assert all(v.shape == (2,) and not torch.equal(v, torch.ones(2)) for v in made.factors.values())
    made.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "rates.safetensors").is_file()


@pytest.mark.parametrize("memory", ["graph", "recompute", 1])
def test_memory_modes_train_the_same_model(tmp_path: Path, memory: str | int) -> None:
    found = after(trainer(tmp_path, settings(memory=memory)), 4)
    auto = after(trainer(tmp_path, settings()), 4)
    assert float((found - auto).abs().max()) < 1e-6


def test_a_checkpoint_can_be_resumed_in_another_memory_mode(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings(memory="graph"))
    after(made, 2)
    made.save(tmp_path / "saved")
    again = trainer(tmp_path, settings(memory="recompute", theta_on_host=True, max_skipped=9))
    again.load(tmp_path / "saved")
    assert again.episode == 2
    with pytest.raises(StageError, match="warmup_episodes"):
        trainer(tmp_path, settings(warmup_episodes=2)).load(tmp_path / "saved")


def test_an_episode_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings(), Source(broken=(1, 3)))
    made.run_episode()
    before = made.parameters["0.weight"].clone()
    assert made.run_episode()["skipped"] == 1
    assert torch.equal(made.parameters["0.weight"], before)
    assert "query_loss" in made.run_episode()
    assert made.run_episode()["skipped"] == 2
    made.save(tmp_path / "saved")  # JSON has no NaN
    again = trainer(tmp_path, settings())
    again.load(tmp_path / "saved")
    assert (again.skipped, again.history) == (2, made.history)
    assert after(made, 2).isfinite().all()


def test_training_stops_after_the_limit_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings(max_skipped=1), Source(broken=(4, 5)))
    with pytest.raises(
        DivergedError, match=r"episode 6 became nan .* 2 episodes were skipped .*max_skipped=1"
    ):
        meta_train(made)
    assert made.context.last_checkpoint() == tmp_path / "checkpoints" / "checkpoint-000003"


def test_training_in_which_every_episode_is_skipped_fails(tmp_path: Path) -> None:
    made = trainer(tmp_path, settings(episodes=2, max_skipped=5), Source(broken=(0, 1)))
    with pytest.raises(DivergedError, match="2 episodes were skipped"):
        meta_train(made)


def test_the_rate_rises_then_falls() -> None:
    train = settings(episodes=10, warmup_episodes=4, outer_decay="linear", outer_rate=1.0).train
    rates = [outer_rate(train, e) for e in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    cosine = settings(episodes=10, outer_decay="cosine", outer_rate=1.0).train
    assert [outer_rate(cosine, 0), outer_rate(cosine, 5)] == pytest.approx([1.0, 0.5])


def test_the_multi_step_loss_anneals_to_the_last_step() -> None:
    train = settings(multi_step_episodes=4).train
    weights = [outer_loss(train, e, 3).step_weights for e in range(5)]
    assert weights[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert weights[2] == pytest.approx((1 / 6, 1 / 6, 2 / 3))
    assert weights[4] is None


def test_order_is_annealed(tmp_path: Path) -> None:
    train = settings(first_order_episodes=2).train
    assert [outer_order(train, e) for e in range(4)] == ["first", "first", "second", "second"]
    annealed = after(trainer(tmp_path, settings(first_order_episodes=2)), 2)
    assert torch.equal(annealed, after(trainer(tmp_path, settings(order="first")), 2))
    assert not torch.equal(annealed, after(trainer(tmp_path, settings()), 2))


def test_reptile_and_bfloat16_train(tmp_path: Path) -> None:
    start = trainer(tmp_path, settings())
    for config in (settings(order="reptile"), settings(precision="bfloat16")):
        made = trainer(tmp_path, config)
        assert after(made, 3).isfinite().all()
        assert all(v.dtype == torch.float32 for v in made.parameters.values())
        assert not torch.equal(flatten(made.parameters), flatten(start.parameters))


def test_a_warm_up_that_processor_time_measures_never_exceeds_the_rate() -> None:
    train = settings(outer_rate=0.01, warmup_episodes=5, episodes=6).train
    rates = [outer_rate(train, episode / 100) for episode in range(501)]
    assert max(rates) == 0.01
    assert rates == sorted(rates)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    config = settings(outer_optimizer="SGD", outer_rate=1.0, clip_norm=0.01)
    made = trainer(tmp_path, config)
    before = flatten(made.parameters).clone()
    made.run_episode()
    assert float((flatten(made.parameters) - before).norm()) == pytest.approx(0.01, rel=1e-4)
    made.close()


@pytest.mark.parametrize(
    ("train", "inner", "message"),
    [
        ({"outer_optimizer": "adam"}, {}, "no optimizer 'adam'; did you mean 'Adam'"),
        ({"outer_optimizer": "LBFGS"}, {}, "There are: ASGD"),
        ({"outer_options": {"beta": 1.0}}, {}, "Adam takes no 'beta'"),
        ({"outer_options": {"lr": 1.0}}, {}, "Adam takes no 'lr'"),
        ({"outer_options": {"eps": -1.0}}, {}, "Invalid epsilon"),
        ({"outer_options": {"betas": [0.9]}}, {}, "outer_options of Adam"),
        ({"order": "first", "first_order_episodes": 3}, {}, "leave it at 0"),
        ({"order": "reptile", "query": {"clean": 0.5}}, {}, "uses no query loss"),
        ({"query": {"failures": 0}}, {}, "all shares are 0"),
        ({"order": "reptile"}, {"learned_rates": True}, "inner.learned_rates"),
        ({"memory": 0}, {}, "train.memory"),
        ({"memory": "all"}, {}, "train.memory"),
        ({"precision": "float16"}, {}, "train.precision"),
        ({}, {"momentum": 1.0}, "inner.momentum"),
        ({}, {"parts": []}, "inner.parts"),
        ({"memory": -1}, {}, r"train\.memory: -1 .*auto, graph, recompute, or a number from 1"),
        ({}, {"parts": "head"}, r"inner\.parts: 'head' .*write \[head\]"),
        ({"warmup_episodes": 7}, {}, "warmup_episodes=7 is more than the 6 episodes"),
        ({"first_order_episodes": 7}, {}, "first_order_episodes=7 is more than"),
        ({"multi_step_episodes": 7}, {}, "multi_step_episodes=7 is more than"),
    ],
)
def test_invalid_settings_are_refused(train: dict[str, Any], inner: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(inner=inner, **train)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"weight_decay": True}, "outer_options of Adam"),
        ("NAdam", {"betas": [0.9, 0.9, 0.9]}, "must be a list of 2 numbers"),
        ("Adam", {"betas": 0.9}, "must be a list of 2 numbers"),
        ("Adam", {"eps": 0}, r"whose gradient is 0 to nan"),
        ("SGD", {"momentum": 1.0}, "momentum=1.0 must be a number from 0 to below 1"),
        ("SGD", {"weight_decay": 1e38}, "in two steps"),
        ("RMSprop", {"alpha": 5.0}, "alpha=5.0 must be a number from 0 to below 1"),
    ],
)
def test_outer_options_that_fail_in_a_step_are_refused_before_it(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(outer_optimizer=name, outer_options=options)


@pytest.mark.parametrize("learned", ["0.weight", "factor 5.weight"])
def test_a_step_to_values_that_are_not_finite_stops_training_and_saves_nothing(
    tmp_path: Path, learned: str
) -> None:
    options = {"outer_optimizer": "SGD", "outer_options": {"momentum": 0.5}, "inner": {"learned_rates": True}}
    made = trainer(tmp_path, settings(episodes=4, round_episodes=1, **options))

    class Breaking(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            if made.episode == 2:
                made.learned[learned].flatten()[0] = torch.nan

    made.optimizer = Breaking(list(made.learned.values()), lr=0.01)
    with pytest.raises(
        DivergedError, match=r"outer step of episode 3, .*SGD with outer_options=.*momentum.*0.5"
    ):
        meta_train(made)
    made.close()
    assert made.context.last_checkpoint() == tmp_path / "checkpoints" / "checkpoint-000002"


@pytest.mark.parametrize("killed_at", [2, 5, 6, 9, 11])
def test_a_killed_training_does_fewer_than_two_intervals_again(tmp_path: Path, killed_at: int) -> None:
    config = settings(episodes=12, round_episodes=3)
    whole = after(trainer(tmp_path / "whole", config), 12)
    source = Source()
    made = trainer(tmp_path / "killed", config, source)
    publish = made.context.journal.checkpoints._publish  # type: ignore[attr-defined]

    def never(part: Any, episode: int, then: Any) -> None:
        """Publish all but the last checkpoint, as if the process died while publishing it."""
        if episode + 3 <= killed_at:
            publish(part, episode, then)

    made.context.journal.checkpoints._publish = never  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        meta_train(dying(made, killed_at))
    done = {episode for episode, _ in source.made if episode < killed_at}
    assert len(done) == killed_at
    source.made.clear()
    again = trainer(tmp_path / "killed", config, source)
    meta_train(again)
    assert len({e for e, _ in source.made} & done) < 2 * 3
    assert torch.equal(flatten(again.parameters), whole[: flatten(again.parameters).numel()])


def dying(made: MetaTrainer, episode: int) -> MetaTrainer:
    """Return a trainer that is killed at the start of `episode`."""
    run = made.run_episode

    def run_episode() -> dict[str, float]:
        if made.episode == episode:
            raise KeyboardInterrupt
        return run()

    made.run_episode = run_episode  # type: ignore[method-assign]
    return made


def test_every_task_is_made_once_and_in_order(tmp_path: Path) -> None:
    source = Source()
    after(trainer(tmp_path, settings(episodes=3), source), 3)
    assert source.made == [(e, s) for e in range(3) for s in range(2)]


def test_the_next_item_is_made_while_the_current_one_is_in_use() -> None:
    begun = threading.Event()

    def make(key: int) -> int:
        if key == 1:
            begun.set()
        return 10 * key

    ahead = Lookahead(make, lambda key: key + 1 if key < 2 else None)
    assert ahead.get(0) == 0
    assert begun.wait(LIMIT_S)
    assert [ahead.get(1), ahead.get(2), ahead.get(0)] == [10, 20, 0]  # 0 is made on demand
    ahead.close()


def test_an_error_is_raised_when_its_item_is_requested() -> None:
    def make(key: int) -> int:
        if key == 1:
            raise KeyError(key)
        return key

    ahead = Lookahead(make, lambda key: key + 1)
    assert ahead.get(0) == 0
    with pytest.raises(KeyError):
        ahead.get(1)
    ahead.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("memory", ["graph", "recompute"])
def test_sixty_episodes_leak_nothing(tmp_path: Path, memory: str) -> None:
    made = trainer(tmp_path, settings(episodes=80, memory=memory, inner={"momentum": 0.5}))
    for _ in range(20):
        made.run_episode()
    before = resident_bytes()
    after(made, 60)
    assert resident_bytes() < 1.02 * before
