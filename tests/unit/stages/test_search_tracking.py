"""The trials of a search are reported from their records: settings, each round, score; TensorBoard by training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metarepair.config.load import parse_config
from metarepair.runs.context import write_last_report
from metarepair.stages.search_tracking import TrialTracking
from metarepair.stages.search_trial import TrialRecord, write_record
from metarepair.trackers import tracking as module
from metarepair.trackers.tracker import Subject
from metarepair.trackers.tracking import Tracking

CONFIG = parse_config(
    {
        "name": "search",
        "targets": ["snow", "fog"],
        "mining": {"experiences": ["frost"]},
        "trackers": ["tensorboard", "mlflow"],
        "search": {"trials": 3, "space": {"inner.rate": {"uniform": [0.1, 0.2]}}},
    }
)


def train(folder: Path, judge: str, accuracies: dict[int, float], *, episodes: int) -> None:
    """Leave what a training of so many episodes leaves; some of them are judged."""
    history = [{"episode": n, "query_loss": 1 / n} for n in range(1, episodes + 1)]
    for episode, accuracy in accuracies.items():
        history[episode - 1]["validation_accuracy"] = accuracy
    checkpoint = folder / judge / "checkpoints" / f"checkpoint-{episodes:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"history": history}))
    write_last_report(folder / judge, {"episode": float(episodes)})


def test_each_trial_is_a_run_with_its_values_rounds_and_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, list[Any]] = {}
    opened: dict[str, Any] = {}
    closed: list[tuple[str, str]] = []

    def tracker(subject: Subject, known: str | None, parent: str | None) -> Any:
        opened[subject.title] = dict(subject.params)
        return SimpleNamespace(
            id=known or subject.title,
            log=given.setdefault(subject.title, []).extend,
            close=lambda status: closed.append((subject.title, status)),
        )

    monkeypatch.setattr(module, "PROGRAMS", dict.fromkeys(("tensorboard", "mlflow"), tracker))
    setup: Any = SimpleNamespace(config=CONFIG, trials=tmp_path / "trials")

    def search() -> None:
        with Tracking(CONFIG, tmp_path) as tracking, TrialTracking(tracking, setup).following():
            pass

    one, two, three = (tmp_path / "trials" / f"trial-000{n}" for n in (1, 2, 3))
    write_record(one, TrialRecord(drawn={"inner.rate": 0.1}, rounds=2, objective=0.6, over=True))
    train(one, "snow", {2: 0.2, 4: 0.5}, episodes=4)
    train(one, "fog", {2: 0.4, 4: 0.7}, episodes=4)
    write_record(two, TrialRecord(drawn={"inner.rate": 0.2}, over=True, error="it diverged"))
    write_record(three, TrialRecord(drawn={"inner.rate": 0.15}, rounds=1, objective=0.25))
    train(three, "snow", {2: 0.25}, episodes=2)
    search()
    assert opened["search trial-0001"] == {"inner.rate": 0.1}
    assert given["search trial-0001"] == [
        (2, {"objective": pytest.approx(0.3), "snow": 0.2, "fog": 0.4}),
        (4, {"objective": pytest.approx(0.6), "snow": 0.5, "fog": 0.7}),
        (5, {"score": 0.6}),
    ]
    assert [step for step, _ in given["search trial-0001 fog"]] == [1, 2, 3, 4], "as TensorBoard shows it"
    assert given["search trial-0002"] == [(0, {})], "a failed trial has no score"
    assert ("search trial-0002", "FAILED") in closed
    assert given["search trial-0003"] == [(0, {"score": 0.25})], "not all have judged it yet"
    given.clear()
    opened.clear()
    search()
    assert set(opened) == {"search"}, "a resumed search opens no finished trial again"
