"""Trackers get each step once, also after a kill; one that fails never ends the work."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.golden_run import read_events
from metarepair.config.load import parse_config
from metarepair.runs.context import Entry
from metarepair.trackers import record as record_module
from metarepair.trackers import tracking as module
from metarepair.trackers.record import RECORD
from metarepair.trackers.tracker import Status, Subject
from metarepair.trackers.tracking import REMEDIES, Tracking, flat
from metarepair.trackers.words import words_of
from tasks.errors import ConfigError, StorageError
from tracked import mlflow_runs, mlflow_steps, use_mlflow_in, use_wandb_in, wandb_records

SECRET = "SECRET-4f1c9b"


class Fake:
    """A tracker that remembers what it was given, by title, and fails where it is told to."""

    given: dict[str, list[Entry]]
    closed: list[tuple[str, Status]]
    opened: list[tuple[str, str | None, str | None]]
    failing: Exception | None

    def __init__(self, subject: Subject, known: str | None, parent: str | None) -> None:
        if self.failing is not None and parent is None:
            raise self.failing
        self.title, self.id = subject.title, known or f"id of {subject.title}"
        self.opened.append((self.title, known, parent))

    def log(self, entries: Sequence[Entry]) -> None:
        if self.failing is not None:
            raise self.failing
        self.given.setdefault(self.title, []).extend(entries)

    def close(self, status: Status) -> None:
        self.closed.append((self.title, status))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Fake]]:
    """Fake trackers in place of all three."""
    made = {
        name: type(name, (Fake,), {"given": {}, "closed": [], "opened": [], "failing": None})
        for name in ("tensorboard", "mlflow", "wandb")
    }
    monkeypatch.setattr(module, "PROGRAMS", made)
    return made


def tracking_in(folder: Path, *trackers: str, **changes: Any) -> Tracking:
    values = {"name": "tiny", "mining": {"experiences": ["fog"]}, "trackers": list(trackers), **changes}
    return Tracking(parse_config(values), folder)


def training(folder: Path) -> Subject:
    params = {"target": "snow", "seed": 3}
    return Subject(title="tiny train snow", folder=folder / "meta", params=params, group="meta-training")


def entries_to(last: int) -> list[Entry]:
    return [(step, {"query_loss": 1 / step, "undefined": float("nan")}) for step in range(1, last + 1)]


def follow(tracking: Tracking, last: int) -> None:
    """Report a training that has come to the episode `last`."""
    folder = tracking._whole.folder
    assert isinstance(folder, Path)
    with tracking.following(training(folder), lambda after: entries_to(last)[max(after, 0) :]):
        pass


def test_a_resumed_training_continues_its_runs_and_gives_no_step_twice(
    fakes: dict[str, type[Fake]], tmp_path: Path
) -> None:
    follow(tracking_in(tmp_path, "mlflow"), 2)
    follow(tracking_in(tmp_path, "mlflow"), 5)
    given = fakes["mlflow"].given["tiny train snow"]
    assert given == [(step, {"query_loss": 1 / step}) for step in range(1, 6)], "and no undefined value"
    assert fakes["mlflow"].opened[2:] == [
        ("tiny", "id of tiny", None),
        ("tiny train snow", "id of tiny train snow", "id of tiny"),
    ]


def test_a_step_is_recorded_before_it_is_given(fakes: dict[str, type[Fake]], tmp_path: Path) -> None:
    def killed(_: Fake, entries: Sequence[Entry]) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes["mlflow"], "log", killed)
        with pytest.raises(KeyboardInterrupt):
            follow(tracking_in(tmp_path, "mlflow"), 2)
    follow(tracking_in(tmp_path, "mlflow"), 3)
    assert [step for step, _ in fakes["mlflow"].given["tiny train snow"]] == [3]


def test_a_tracker_that_comes_later_is_given_all_steps(fakes: dict[str, type[Fake]], tmp_path: Path) -> None:
    follow(tracking_in(tmp_path, "tensorboard"), 2)
    follow(tracking_in(tmp_path, "tensorboard", "wandb"), 4)
    steps = {
        name: [step for step, _ in made.given.get("tiny train snow", [])] for name, made in fakes.items()
    }
    assert steps == {"tensorboard": [1, 2, 3, 4], "mlflow": [], "wandb": [1, 2, 3, 4]}


def test_a_run_that_the_tracker_lost_is_made_again_with_all_steps(
    fakes: dict[str, type[Fake]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(tracking_in(tmp_path, "mlflow"), 2)
    record = json.loads((tmp_path / "meta" / RECORD).read_text())
    assert record == {"mlflow": {"id": "id of tiny train snow", "step": 2}}

    def lost(self: Fake, subject: Subject, known: str | None, parent: str | None) -> None:
        self.title, self.id = subject.title, "new"

    monkeypatch.setattr(fakes["mlflow"], "__init__", lost)
    fakes["mlflow"].given.clear()
    follow(tracking_in(tmp_path, "mlflow"), 3)
    assert [step for step, _ in fakes["mlflow"].given["tiny train snow"]] == [1, 2, 3]


def test_a_tracker_that_fails_is_left_out_with_one_warning_and_the_others_go_on(
    fakes: dict[str, type[Fake]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = tracking_in(tmp_path, "tensorboard", "mlflow")
    with tracking:
        fakes["mlflow"].failing = RuntimeError(f"no answer from http://user:{SECRET}@server")
        for last in (2, 4):
            tracking.look(training(tmp_path), lambda after, last=last: entries_to(last)[max(after, 0) :])
        tracking.figures({"snow/none/clean": 0.5})
    assert [step for step, _ in fakes["tensorboard"].given["tiny train snow"]] == [1, 2, 3, 4]
    assert fakes["mlflow"].given == {}
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "The tracker mlflow failed (RuntimeError: no answer from http://***@server)" in warning.message
    assert ("tiny", "FINISHED") not in fakes["mlflow"].closed, "closing might wait for a server that is gone"


def test_a_tracker_that_cannot_start_is_an_error_without_its_password(
    fakes: dict[str, type[Fake]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    fakes["wandb"].failing = RuntimeError(f"the key {SECRET} is refused")
    tracking = tracking_in(tmp_path, "mlflow", "wandb")
    with (
        pytest.raises(
            ConfigError, match=r"wandb cannot start .*\*\*\* is refused.* leave wandb out"
        ) as raised,
        tracking,
    ):
        pytest.fail("no work may begin")
    assert raised.value.__suppress_context__
    assert SECRET not in str(raised.value)
    assert fakes["mlflow"].closed == [("tiny", "FAILED")]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'metarepair\[{name}\]'"):
        tracking_in(tmp_path, name)


def test_an_unknown_tracker_is_refused_with_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"trackers.*'mflow'.*did you mean 'mlflow'"):
        parse_config({"name": "tiny", "mining": {"experiences": ["fog"]}, "trackers": ["mflow"]})


@pytest.mark.parametrize(
    ("raised", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_runs_are_closed_once_at_the_end_of_the_outer_block_with_how_it_ended(
    raised: type[BaseException] | None, status: str, fakes: dict[str, type[Fake]], tmp_path: Path
) -> None:
    tracking = tracking_in(tmp_path, "mlflow")

    def work() -> None:
        with tracking, tracking.following(training(tmp_path), lambda after: entries_to(1)[max(after, 0) :]):
            tracking.look(training(tmp_path), lambda after: entries_to(1)[max(after, 0) :])
            if raised is not None:
                raise raised

    if raised is None:
        work()
    else:
        with pytest.raises(raised):
            work()
    assert fakes["mlflow"].closed == [("tiny train snow", status), ("tiny", status)]


def test_figures_are_reported_again_only_if_they_changed(
    fakes: dict[str, type[Fake]], tmp_path: Path
) -> None:
    for clean in (0.5, 0.5, 0.6):
        with tracking_in(tmp_path, "mlflow") as tracking:
            tracking.figures({"snow/none/clean": clean})
    assert fakes["mlflow"].given["tiny"] == [(0, {"snow/none/clean": 0.5}), (1, {"snow/none/clean": 0.6})]


@pytest.mark.parametrize("damaged", ["", "[]", '{"mlflow": 3}', '{"mlflow": {"step": "x"}}'])
def test_a_damaged_record_counts_as_none(damaged: str, fakes: dict[str, type[Fake]], tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / RECORD).write_text(damaged)
    follow(tracking_in(tmp_path, "mlflow"), 1)
    assert fakes["mlflow"].given["tiny train snow"] == [(1, {"query_loss": 1.0})]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), StorageError("no answer")])
def test_a_record_that_cannot_be_read_starts_no_second_run(
    error: Exception,
    fakes: dict[str, type[Fake]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    follow(tracking_in(tmp_path, "mlflow"), 2)
    before = list(fakes["mlflow"].opened)
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "read_json", raising(error))
        follow(tracking_in(tmp_path, "mlflow"), 3)
    assert fakes["mlflow"].opened == before
    (warning,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert f"{tmp_path / RECORD} cannot be read ({type(error).__name__}: " in warning
    follow(tracking_in(tmp_path, "mlflow"), 4)
    assert [step for step, _ in fakes["mlflow"].given["tiny train snow"]] == [1, 2, 3, 4]


def test_a_record_that_cannot_be_written_is_no_fault_of_the_tracker(
    fakes: dict[str, type[Fake]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tracking_in(tmp_path, "mlflow") as tracking:
        monkeypatch.setattr(record_module, "write_text", raising(OSError(28, "No space left on device")))
        tracking.look(training(tmp_path), lambda _: entries_to(1))
        tracking.look(training(tmp_path), lambda _: entries_to(1))
    assert fakes["mlflow"].given == {}, "a step that is not recorded would be given twice"
    assert fakes["mlflow"].closed == [("tiny train snow", "KILLED"), ("tiny", "KILLED")]
    (warning,) = (record.message for record in caplog.records if record.levelno == logging.WARNING)
    assert f"{tmp_path / 'meta' / RECORD} cannot be written (OSError: [Errno 28] No space left" in warning
    assert "mlflow failed" not in warning


def raising(error: Exception) -> Any:
    def function(*_: Any) -> None:
        raise error

    return function


def test_trackers_at_one_step_share_one_reading(fakes: dict[str, type[Fake]], tmp_path: Path) -> None:
    asked: list[int] = []

    def read(after: int) -> list[Entry]:
        asked.append(after)
        return entries_to(2)[max(after, 0) :]

    with tracking_in(tmp_path, "tensorboard", "mlflow", "wandb") as tracking:
        for _ in range(2):
            tracking.look(training(tmp_path), read)
    assert asked == [-1, 2]
    assert all(len(made.given["tiny train snow"]) == 2 for made in fakes.values())


def test_a_tracker_is_announced_before_it_is_started(
    fakes: dict[str, type[Fake]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fakes["mlflow"].failing = RuntimeError("no answer")
    with pytest.raises(ConfigError), tracking_in(tmp_path, "tensorboard", "mlflow"):
        pytest.fail("no work may begin")
    assert [record.message for record in caplog.records] == ["tracker mlflow: connecting"]


def test_an_unreadable_training_is_left_for_the_next_look(
    fakes: dict[str, type[Fake]], tmp_path: Path
) -> None:
    def unreadable(after: int) -> Sequence[Entry]:
        raise FileNotFoundError

    with tracking_in(tmp_path, "mlflow") as tracking:
        tracking.look(training(tmp_path), unreadable)
        tracking.look(training(tmp_path), lambda _: entries_to(1))
    assert fakes["mlflow"].given["tiny train snow"] == [(1, {"query_loss": 1.0})]


def test_settings_are_flattened_by_dotted_name() -> None:
    assert flat({"a": {"b": [1, "x"], "c": {}}, "d": None}) == {"a.b": "[1, 'x']", "a.c": "{}", "d": None}


@pytest.mark.parametrize(
    "address",
    [f"https://user:{SECRET}@host/a", f"postgresql://user:a%2F{SECRET}@host/b", f"http://{SECRET}@host"],
)
def test_an_address_loses_its_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    words = words_of(OSError(f"API request to {address} failed"))
    assert words.startswith("OSError: API request to ")
    assert words.endswith(" failed")
    assert SECRET not in words


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://h:9?token=SECRETQ/api/2.0 failed", "http://h:9?*** failed"),
        ("with url: /?key=SECRETQ&name=x (refused)", "with url: /?*** (refused)"),
        ("postgresql://user:p@SECRETQ@host/db, http://host/a@b", "postgresql://***@host/db, http://host/a@b"),
        ("Authorization: Bearer SECRETQ was refused", "Authorization: Bearer *** was refused"),
        ("{'Authorization': 'Basic SECRETQ', 'a': 1}", "{'Authorization': *** 'a': 1}"),
        ("a bearer SECRETQ of a header", "a bearer *** of a header"),
        ("password=SECRETQ host=h", "password=*** host=h"),
        ('"token": "SECRETQ SECRETQ" of h', '"token": *** of h'),
        ("MLFLOW_TRACKING_TOKEN=SECRETQ", "MLFLOW_TRACKING_TOKEN=***"),
        ("api_key: SECRETQ, X-API-Key=SECRETQ", "api_key: *** X-API-Key=***"),
        ("the token has expired", "the token has expired"),
    ],
)
def test_secrets_are_hidden_by_what_stands_before_them(said: str, shown: str) -> None:
    assert words_of(OSError(said)) == f"OSError: {shown}"


def test_a_short_secret_is_hidden_in_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:e@server")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "e")
    assert words_of(OSError("the server http://user:e@server")) == "OSError: the server http://***@server"


def test_a_secret_of_the_environment_is_hidden_in_both_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:p%2Fq%2F1@server")
    monkeypatch.setenv("WANDB_API_KEY", "k/ey")
    assert words_of(OSError("p/q/1 p%2Fq%2F1 k/ey k%2Fey")) == "OSError: *** *** *** ***"


def test_tensorboard_has_each_scalar_below_the_name_of_the_training(tmp_path: Path) -> None:
    follow(tracking_in(tmp_path, "tensorboard"), 2)
    follow(tracking_in(tmp_path, "tensorboard"), 3)
    files = sorted((tmp_path / "meta" / "tensorboard").iterdir())
    events = read_events(None, files)  # type: ignore[arg-type]
    assert [(step, tag) for step, tag, _ in events] == [(n, "meta-training/query_loss") for n in (1, 2, 3)]
    assert [value for *_, value in events] == pytest.approx([1, 1 / 2, 1 / 3])
    assert not (tmp_path / RECORD).exists(), "it has nothing to show of the run as a whole"


@pytest.mark.slow
def test_mlflow_has_a_run_with_its_trainings_as_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mlflow_in(tmp_path / "store", monkeypatch)
    follow(tracking_in(tmp_path / "run", "mlflow"), 2)
    follow(tracking_in(tmp_path / "run", "mlflow", seed=4), 1100)  # more than MLflow takes at once
    with tracking_in(tmp_path / "run", "mlflow") as tracking:
        tracking.figures({"snow/none/clean": 0.5})
    runs = mlflow_runs()
    assert set(runs) == {"tiny", "tiny train snow"}
    whole, child = runs["tiny"], runs["tiny train snow"]
    assert child.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert (whole.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert whole.data.params["mining.experiences"] == "['fog']"
    assert whole.data.params["seed"] == "0", "the settings that the run began with"
    assert child.data.params == {"target": "snow", "seed": "3"}
    assert whole.data.metrics == {"snow/none/clean": 0.5}
    assert mlflow_steps(child, "query_loss") == list(range(1, 1101))


@pytest.mark.slow
def test_another_mlflow_server_is_given_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, last in enumerate((2, 3)):
        use_mlflow_in(tmp_path / f"store{number}", monkeypatch)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        follow(tracking_in(tmp_path / "run", "mlflow"), last)
    assert mlflow_steps(mlflow_runs("mine")["tiny train snow"], "query_loss") == [1, 2, 3]


@pytest.mark.slow
def test_a_server_that_does_not_answer_ends_before_work_and_prints_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mlflow_in(tmp_path / "store", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv(module.RETRIES, "0")
    with pytest.raises(ConfigError, match="mlflow cannot start") as raised, tracking_in(tmp_path, "mlflow"):
        pytest.fail("no work may begin")
    assert "127.0.0.1" in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.slow
def test_the_file_store_that_mlflow_refuses_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mlflow_in(tmp_path / "store", monkeypatch)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(ConfigError) as raised, tracking_in(tmp_path, "mlflow"):
        pytest.fail("no work may begin")
    assert f"{REMEDIES['mlflow']}, or leave mlflow out of trackers." in str(raised.value)
    assert "MLFLOW_ALLOW_FILE_STORE=true" in REMEDIES["mlflow"]


@contextmanager
def wandb_offline_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases as one command sees it: its service is stopped at the end.

    Each command has a folder of its own, as the names of offline runs differ by the second.
    """
    import wandb

    use_wandb_in(folder, monkeypatch)
    try:
        yield
    finally:
        wandb.teardown()


@pytest.mark.slow
def test_wandb_has_a_group_of_a_run_and_its_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for last in (2, 3):
        with wandb_offline_in(tmp_path / f"wandb{last}", monkeypatch):
            follow(tracking_in(tmp_path / "run", "wandb"), last)
    with (
        wandb_offline_in(tmp_path / "wandb4", monkeypatch),
        tracking_in(tmp_path / "run", "wandb") as last_one,
    ):
        last_one.figures({"snow/none/clean": 0.5})
    records = [
        one
        for path in sorted(tmp_path.glob("wandb*/wandb/offline-run-*/*.wandb"))
        for one in wandb_records(path)
    ]
    runs = [one.run for one in records if one.HasField("run")]
    whole, child = (next(r for r in runs if r.display_name == n) for n in ("tiny", "tiny train snow"))
    assert {r.run_id for r in runs} == {whole.run_id, child.run_id}, "a resumed run has its id"
    assert whole.run_group == child.run_group == whole.run_id
    assert {"target": '"snow"', "seed": "3"}.items() <= config_of(child).items()
    rows = [history_of(one.history) for one in records if one.HasField("history")]
    assert [(row["_step"], row["query_loss"]) for row in rows if "query_loss" in row] == [
        ("1", "1"),
        ("2", "0.5"),
        ("3", json.dumps(1 / 3)),
    ]
    assert [row["snow/none/clean"] for row in rows if "query_loss" not in row] == ["0.5"]


def config_of(run: Any) -> dict[str, str]:
    return {one.key: one.value_json for one in run.config.update}


def history_of(history: Any) -> dict[str, str]:
    return {one.key or "/".join(one.nested_key): one.value_json for one in history.item}
