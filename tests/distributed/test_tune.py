"""A search on a real local Ray never reads D_fail, is reproducible, resumes after a kill, and explains its refusals."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from distributed.search.draws import (
    Bounds,
    TrialName,
    build_searcher,
    count_trials,
    drawn_of,
    most_rounds,
    param_space,
)
from distributed.search.progress import SearchProgress
from distributed.search.tune import TuneSearch
from metarepair.config.load import load_config
from metarepair.config.run import Config
from metarepair.runs.context import LocalContext
from metarepair.search.space import dimensions, search_of
from metarepair.search.trials import Trial
from metarepair.stages.search_inputs import TrialSetup, trial_inputs
from metarepair.stages.search_trial import (
    Donor,
    JointTraining,
    TrialRecord,
    begin_trial,
    read_record,
    trial_settings,
)
from tasks.errors import ConfigError, DivergedError, StageError, UserError
from tasks.experiences import store
from tasks.records import Failures
from tasks.storage.paths import Place
from waiting import wait_until

pytestmark = pytest.mark.distributed

StorageOf = Callable[[str], Path]
Tiny = Callable[..., Config]
SPACE: dict[str, Any] = {
    "space": {"inner.rate": {"log_uniform": [0.01, 0.3]}, "task.shots": {"choice": [1, 2]}},
    "trials": 3,
}
SHORT = {"episodes": 4, "round_episodes": 2, "tasks": 2}


def searching(tiny: Tiny, storage: Path, search: dict[str, Any], **changes: Any) -> Config:
    return tiny(storage, search=search, **({"train": SHORT} | changes))


def searched(config: Config) -> list[Trial]:
    """Start or resume a search; return its trials."""
    search = TuneSearch(config)
    search.search()
    return trials_of(search)


def trials_of(search: TuneSearch) -> list[Trial]:
    return [Trial(**t) for t in json.loads((search.run.search / "trials.json").read_text())]


def outcome(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """Return everything that does not depend on the clock."""
    return [(t.name, t.state, t.objective, t.rounds, dict(t.drawn), t.error) for t in trials]


def prepared(config: Config) -> TrialSetup:
    """Prepare the inputs of trials, without Ray."""
    from distributed.stages.executor import executor_for
    from metarepair.stages.search_inputs import prepare_inputs

    search = TuneSearch(config)
    return prepare_inputs(search.run, config, search.pipeline.here, *search._mined(), executor_for(config))


def joint(setup: TrialSetup, name: str, drawn: dict[str, Any]) -> JointTraining:
    settings = trial_settings(setup, name, drawn)
    assert settings is not None

    def context(folder: Place) -> LocalContext:
        return LocalContext(folder=folder, device=torch.device("cpu"))

    return JointTraining(setup, settings, context, kept=None)


def trained_here(
    setup: TrialSetup, name: str, drawn: dict[str, Any], donor: Donor | None = None
) -> TrialRecord:
    """Train a trial in this process; return its last record."""
    record, training = begin_trial(setup, name, drawn, donor), joint(setup, name, drawn)
    *_, last = training.records(record, donor, training.total)
    return last


@pytest.fixture(scope="module")
def undisturbed(
    cluster: None, scored: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, list[Trial]]:
    """The configuration and trials of an uninterrupted search."""
    storage = Path(shutil.copytree(scored, tmp_path_factory.mktemp("search") / "whole"))
    config = searching(tiny, storage, SPACE)
    return config, searched(config)


# What a trial may read


@pytest.fixture
def d_fail_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    read = store.read_failures

    def guarded(path: Path) -> Failures:
        if path.name == "fail.arrow" and "targets" in path.parts:
            raise AssertionError(f"{path} was opened")
        return read(path)

    monkeypatch.setattr(store, "read_failures", guarded)


def paths_in(value: Any) -> Iterator[Path]:
    """Yield every path inside `value`, at any depth."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from paths_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from paths_in(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from paths_in([getattr(value, name) for name in value.__dataclass_fields__])


def test_the_inputs_of_a_trial_hold_no_path_to_a_target(storage_of: StorageOf, tiny: Tiny) -> None:
    setup = prepared(searching(tiny, storage_of("paths"), SPACE))
    settings = trial_settings(setup, "trial-0001", {"inner.rate": 0.1, "task.shots": 1})
    assert settings is not None
    given = [setup.trials, *paths_in(setup.judges), *paths_in(trial_inputs(setup, settings))]
    # trials; judge's folder; that folder, three experiences, joint training, copies of own environments
    assert len(given) == 1 + 1 + 6
    assert not [p for p in given if "targets" in p.parts]
    copied = setup.judges[0].collect
    assert sorted(p.name for p in copied.iterdir()) == ["collect.arrow", "manifest.json"]
    # The trial's storage path is the folder of trials, not the storage of the run.
    assert settings.storage_path == str(setup.trials)


def test_a_trial_trains_and_is_judged_without_d_fail(
    storage_of: StorageOf, tiny: Tiny, d_fail_is_locked: None
) -> None:
    drawn = {"inner.rate": 0.1, "task.shots": 1}
    with_it = prepared(searching(tiny, storage_of("with"), SPACE))
    without = prepared(searching(tiny, storage_of("without"), SPACE))
    fail = Path(str(without.trials)).parents[1] / "targets" / "gaussian_noise" / "fail.arrow"
    fail.unlink()
    first, second = (trained_here(setup, "trial-0001", drawn) for setup in (with_it, without))
    assert first.objective is not None
    assert first.objective > 0  # it did repair
    assert (first.objective, first.rounds) == (second.objective, second.rounds)


@pytest.mark.slow
def test_a_search_without_d_fail_and_with_a_killed_trial_has_the_same_outcome(
    undisturbed: tuple[Config, list[Trial]],
    storage_of: StorageOf,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try_all = TuneSearch.try_all

    def try_without_d_fail(self: TuneSearch, setup: TrialSetup) -> list[Trial]:
        (self.run.target("gaussian_noise") / "fail.arrow").unlink()
        return try_all(self, setup)

    monkeypatch.setattr(TuneSearch, "try_all", try_without_d_fail)
    storage = storage_of("again")
    begun = storage / "tiny" / "search" / "trials" / "trial-0001" / "record.json"
    with a_trial_killed_once(begun) as killed:
        again = searched(searching(tiny, storage, SPACE))
    whole = undisturbed[1]
    assert len(killed) == 1
    assert outcome(again) == outcome(whole)
    assert [t.state for t in whole] == ["finished"] * 3
    assert len({t.drawn["inner.rate"] for t in whole}) == 3
    assert all(t.objective is not None and t.rounds == 2 for t in whole)


@contextmanager
def a_trial_killed_once(begun: Path) -> Iterator[list[int]]:
    """Kill the process of one trial as soon as the file `begun` exists; yield the killed process ids."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not killed and not over.wait(0.02):
            if begun.exists():
                killed.extend(trial_processes()[:1])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def trial_processes() -> list[int]:
    """Return the process ids of Tune's trials below this process."""
    parents: dict[int, int] = {}
    trials = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                trials.append(int(path.name))
        except OSError:  # the process has ended meanwhile
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in trials if ours(pid)]


def test_a_pseudo_target_learns_only_from_the_others_and_needs_no_target(tmp_path: Path, tiny: Tiny) -> None:
    search = SPACE | {"objective": "pseudo_targets", "pseudo_targets": ["snow", "shot_noise"]}
    config = searching(tiny, tmp_path, search, mining={"collect": 25, "severities": [5]})
    setup = prepared(config)
    assert not (tmp_path / "tiny" / "targets").exists()  # no target was mined
    drawn = {"inner.rate": 0.1, "task.shots": 1}
    settings = trial_settings(setup, "trial-0001", drawn)
    assert settings is not None
    for inputs in trial_inputs(setup, settings):
        assert set(inputs.experiences) == {"snow", "shot_noise", "speckle_noise"} - {inputs.target}
        assert inputs.split == "train"
    record = trained_here(setup, "trial-0001", drawn)
    assert set(record.accuracies) == {"snow", "shot_noise"}
    assert record.objective == pytest.approx(sum(record.accuracies.values()) / 2)


# Resuming


def test_a_finished_search_says_so_and_other_settings_are_refused_with_the_difference(
    undisturbed: tuple[Config, list[Trial]], caplog: pytest.LogCaptureFixture
) -> None:
    config, trials = undisturbed
    TuneSearch(config).search()
    assert f"search: already complete, see {config.storage_path}/tiny/search" in caplog.messages
    assert "trial-0002" in caplog.messages[-1]
    values = config.model_dump(mode="json")
    values["search"]["trials"] = 5
    with pytest.raises(StageError, match=r"search\.trials: 3 -> 5"):
        TuneSearch(type(config).model_validate(values)).search()
    best = load_config(Path(config.storage_path) / "tiny" / "search" / "best.yaml", [])
    chosen = max(trials, key=lambda t: t.objective or 0.0)
    assert best.search is None
    assert best.inner.rate in [t.drawn["inner.rate"] for t in trials if t.objective == chosen.objective]


@pytest.mark.slow
def test_a_killed_search_resumes_and_repeats_no_finished_trial(
    undisturbed: tuple[Config, list[Trial]], storage_of: StorageOf, tiny: Tiny, tmp_path: Path
) -> None:
    config = searching(tiny, storage_of("killed"), SPACE | {"max_concurrent": 1})
    folder = Path(config.storage_path) / "tiny" / "search" / "trials"
    kill_when(config, tmp_path, lambda: _rounds(folder / "trial-0002") >= 1, "a round of the second trial")
    first = folder / "trial-0001" / "gaussian_noise" / "checkpoints"
    made = {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}
    assert _rounds(folder / "trial-0001") == 2
    assert not (folder.parent / "manifest.json").exists()
    after = searched(config)
    assert outcome(after) == outcome(undisturbed[1])
    assert made
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")} == made


def _rounds(trial: Path) -> int:
    record = read_record(trial)
    return 0 if record is None else record.rounds


def kill_when(config: Config, folder: Path, reached: Callable[[], bool], what: str) -> None:
    """Run the search command until `reached()` is true, then kill it and every process that it started."""
    path, said = folder / "search.yaml", folder / "search.log"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        said.open("wb") as log,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "metarepair", "tune", "--config", str(path)],
            env=environment | {"RAY_TMPDIR": ray_folder},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(reached, what, process=process, output=said, every_s=0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_a_trial_that_died_resumes_from_its_checkpoints_to_the_same_record(
    storage_of: StorageOf, tiny: Tiny
) -> None:
    train = {"episodes": 6, "round_episodes": 2, "tasks": 2}
    setup = prepared(searching(tiny, storage_of("died"), SPACE, train=train))
    drawn = {"inner.rate": 0.1, "task.shots": 1}
    whole = trained_here(setup, "trial-0001", drawn)
    training = joint(setup, "trial-0002", drawn)
    going = training.records(begin_trial(setup, "trial-0002", drawn, None), None, training.total)
    assert next(going).rounds == 1
    going.close()  # as if ended by an exception or from outside
    again = joint(setup, "trial-0002", drawn)
    record = begin_trial(setup, "trial-0002", drawn, None)
    told = list(again.records(record, None, again.total))
    assert [r.rounds for r in told] == [1, 2, 3]  # the first is reported again, not trained
    assert told[-1].objective == whole.objective
    weights = [
        (setup.trials / n / "gaussian_noise/checkpoints/checkpoint-000006/model.safetensors").read_bytes()
        for n in ("trial-0001", "trial-0002")
    ]
    assert weights[0] == weights[1]


def test_a_trial_name_with_other_drawn_values_starts_from_scratch(storage_of: StorageOf, tiny: Tiny) -> None:
    setup = prepared(searching(tiny, storage_of("names"), SPACE))
    drawn = {"inner.rate": 0.1, "task.shots": 1}
    done = trained_here(setup, "trial-0001", drawn)
    assert begin_trial(setup, "trial-0001", drawn, None) == done
    fresh = begin_trial(setup, "trial-0001", drawn | {"task.shots": 2}, None)
    assert (fresh.rounds, fresh.over) == (0, False)
    assert sorted(p.name for p in (setup.trials / "trial-0001").iterdir()) == ["record.json"]


def test_a_trial_copied_by_pbt_starts_from_its_donor_with_its_own_settings(
    storage_of: StorageOf, tiny: Tiny
) -> None:
    search = SPACE | {"trials": 4, "scheduler": "pbt", "perturbation_rounds": 1}
    train = {"episodes": 6, "round_episodes": 2, "tasks": 2}
    setup = prepared(searching(tiny, storage_of("pbt"), search, train=train))
    trained_here(setup, "trial-0001", {"inner.rate": 0.1, "task.shots": 1})
    donor = Donor(trial="trial-0001", rounds=2, episode=4)
    last = trained_here(setup, "trial-0002", {"inner.rate": 0.02, "task.shots": 2}, donor)
    assert (last.rounds, last.drawn["inner.rate"]) == (3, 0.02)
    states = [
        json.loads((setup.trials / n / "gaussian_noise/checkpoints/checkpoint-000006/state.json").read_text())
        for n in ("trial-0001", "trial-0002")
    ]
    losses = [[line["query_loss"] for line in state["history"]] for state in states]
    assert losses[0][:4] == losses[1][:4]
    assert losses[0][4:] != losses[1][4:]


# Schedulers, failures, resources


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_one_without_experiences_has_objective_0(
    cluster: None, storage_of: StorageOf, tiny: Tiny
) -> None:
    """Both experiences together and the near one alone train; the far one is beyond β; the empty set scores 0."""
    setup = prepared(searching(tiny, storage_of("look"), SPACE))
    distance = {s.experience: s.distance for s in setup.judges[0].scores}
    near, *_, far = sorted(distance, key=lambda name: distance[name])
    config = searching(
        tiny,
        storage_of("subsets"),
        {"experience_sets": {"free": [near, far]}, "searcher": "grid", "trials": 1},
        experiences={"rule": "cutoff", "beta": (distance[near] + distance[far]) / 2},
    )
    trials = {(t.drawn[f"experience {near}"], t.drawn[f"experience {far}"]): t for t in searched(config)}
    assert trials[True, True].state == trials[True, False].state == "finished"
    assert trials[True, True].objective == trials[True, False].objective  # β gives the far one no weight
    assert (trials[False, False].objective, trials[False, False].rounds) == (0.0, 0)
    failed = trials[False, True]
    assert (failed.state, failed.objective) == ("failed", None)
    assert "cuts off every experience" in (failed.error or "")


@pytest.mark.soak
def test_asha_stops_a_poor_trial_early(cluster: None, storage_of: StorageOf, tiny: Tiny) -> None:
    """Only batch-norm statistics can change; if they are frozen, no failure is repaired and the objective is 0."""
    search = {
        "space": {"inner.batch_norm": {"choice": ["adapt", "frozen"]}},
        "searcher": "grid",
        "scheduler": "asha",
        "reduction": 2.0,
        "trials": 1,
        "max_concurrent": 1,  # ASHA compares a trial with earlier ones
    }
    still = {"train": SHORT | {"outer_rate": 1e-6}, "inner": {"rate": 1e-6, "batch_norm_momentum": 0.5}}
    adapting, frozen = searched(searching(tiny, storage_of("asha"), search, **still))
    assert (adapting.state, adapting.rounds) == ("finished", 2)
    assert (frozen.state, frozen.rounds, frozen.objective) == ("stopped early", 1, 0.0)
    assert (adapting.objective or 0.0) > 0


@pytest.mark.soak
def test_a_pbt_population_copies_weights_and_every_trial_trains_to_the_end(
    cluster: None, storage_of: StorageOf, tiny: Tiny
) -> None:
    search = {
        "space": {"inner.rate": {"log_uniform": [0.01, 0.3]}},
        "scheduler": "pbt",
        "perturbation_rounds": 1,
        "trials": 4,
    }
    storage = storage_of("population")
    trials = searched(searching(tiny, storage, search))
    assert [(t.state, t.rounds) for t in trials] == [("finished", 2)] * 4
    folder = storage / "tiny" / "search" / "trials"
    histories = [
        json.loads((folder / t.name / "gaussian_noise/checkpoints/checkpoint-000004/state.json").read_text())
        for t in trials
    ]
    assert len({t.drawn["inner.rate"] for t in trials}) == 4
    begun = [state["history"][0]["query_loss"] for state in histories]
    assert len(set(begun)) == 3  # the worst resumed from the best one's weights, with its own rate


@pytest.mark.slow
def test_trials_on_ray_train_match_trials_in_their_own_process(
    undisturbed: tuple[Config, list[Trial]], storage_of: StorageOf, tiny: Tiny
) -> None:
    trials = searched(searching(tiny, storage_of("train"), SPACE | {"trials": 1}, workers=1))
    for here, there in zip(undisturbed[1], trials, strict=False):  # only the first of the three
        assert (here.name, here.state, here.drawn) == (there.name, there.state, there.drawn)
        assert here.objective == pytest.approx(there.objective, abs=0.2)  # one of 7 examples may differ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 4}, "workers=4 needs 4 CPUs, the cluster has 2 CPUs"),
        (
            {"device": "cuda"},
            "A trial of this search needs 1 CPUs and 1 GPUs on one node, the cluster has 2 CPUs",
        ),
        ({"ray": {"cpus_per_worker": 8.0}}, "needs 8 CPUs on one node, the cluster has 2 CPUs in all"),
    ],
)
def test_a_search_that_the_cluster_cannot_place_is_refused_before_mining(
    cluster: None, tmp_path: Path, tiny: Tiny, changes: dict[str, Any], message: str
) -> None:
    config = searching(tiny, tmp_path, SPACE, **changes)
    with pytest.raises(ConfigError) as caught:
        TuneSearch(config).search()
    assert message in str(caught.value)
    assert [p.name for p in (tmp_path / "tiny").iterdir()] == []


def test_if_all_trials_fail_the_first_error_is_reported_in_one_paragraph(
    storage_of: StorageOf, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = searching(tiny, storage_of("failing"), SPACE)
    setup, search = prepared(config), TuneSearch(config)
    results = [
        SimpleNamespace(path=f"/x/trial-000{n}", metrics={}, error=DivergedError("The loss became nan."))
        for n in (2, 1, 3)
    ]
    monkeypatch.setattr(search, "_tuner", lambda _: SimpleNamespace(fit=lambda: results))
    with pytest.raises(
        UserError, match=r"All 3 trials .* trial-0001, failed with: The loss became nan\. Fix"
    ):
        search.try_all(setup)
    results[0].error, results[0].metrics = None, {"done": False}
    with pytest.raises(KeyboardInterrupt):  # stopped, not failed
        search.try_all(setup)


# Inputs of Tune, and progress


def test_choices_are_passed_to_tune_by_number_and_converted_back(tmp_path: Path, tiny: Tiny) -> None:
    space = {
        "inner.parts": {"choice": [["*"], ["head"]]},
        "train.tasks": {"integers": [1, 3]},
        "experiences.alpha": {"choice": [None, 0.5]},
    }
    config = searching(tiny, tmp_path, {"space": space, "searcher": "grid", "trials": 2})
    assert count_trials(config) == 2 * 2 * 3 * 2
    drawn = drawn_of(dimensions(config), {"inner.parts": 1, "train.tasks": 3, "experiences.alpha": 0})
    assert drawn == {"inner.parts": ["head"], "train.tasks": 3, "experiences.alpha": None}
    longer = searching(tiny, tmp_path, {"space": {"train.episodes": {"choice": [4, 7]}}, "trials": 2})
    assert most_rounds(longer) == 4


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_the_same_seed_draws_the_same_trials_and_another_seed_others(
    tmp_path: Path, tiny: Tiny, searcher: str
) -> None:
    def draws(seed: int) -> list[dict[str, Any]]:
        space = SPACE["space"] | {"train.tasks": {"integers": [1, 3]}}
        config = searching(tiny, tmp_path, {"space": space, "searcher": searcher}, seed=seed)
        return [drawn_of(dimensions(config), drawn) for drawn in drawn_by_tune(config, 12)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    for drawn in draws(0):
        assert 0.01 <= drawn["inner.rate"] <= 0.3
        assert drawn["task.shots"] in (1, 2)
    assert {drawn["train.tasks"] for drawn in draws(0)} == {1, 2, 3}


def drawn_by_tune(config: Config, count: int) -> list[dict[str, Any]]:
    """Return what Tune's searcher draws if every trial has the same result."""
    from ray import tune

    searcher, space = build_searcher(config, 1), param_space(config)
    if search_of(config).searcher == "optuna":
        searcher.set_search_properties("objective", "max", space)
        found = []
        for number in range(count):
            found.append(searcher.suggest(str(number)))
            searcher.on_trial_complete(str(number), {"objective": 0.5, "training_iteration": 1})
        return found
    searcher.add_configurations(tune.Experiment("draws", _nothing, config=space, num_samples=count))
    found = []
    for _ in range(count):
        trial = searcher.next_trial()
        found.append(trial.config)
        searcher.on_trial_complete(trial.trial_id)
    return found


def _nothing(config: dict[str, Any]) -> None:
    """A trainable that does nothing."""


def test_mutations_stay_in_their_ranges(tmp_path: Path, tiny: Tiny) -> None:
    bounds = Bounds(dimensions(searching(tiny, tmp_path, SPACE)))
    assert bounds({"inner.rate": 0.36, "task.shots": 1}) == {"inner.rate": 0.3, "task.shots": 1}
    assert bounds({"inner.rate": 0.008, "task.shots": 0}) == {"inner.rate": 0.01, "task.shots": 0}


def test_trials_are_named_in_the_order_of_drawing() -> None:
    tags = ["0_inner.rate=0.1", "9_x", "10"]
    assert [TrialName(first=0)(SimpleNamespace(experiment_tag=t)) for t in tags] == [
        "trial-0001",
        "trial-0010",
        "trial-0011",
    ]
    assert TrialName(first=1)(SimpleNamespace(experiment_tag="1_x")) == "trial-0001"


class FakeTrial(SimpleNamespace):
    def __str__(self) -> str:
        return str(self.name)


def fake_trials() -> list[FakeTrial]:
    def trial(name: str, status: str, drawn: tuple[float, int], **report: float) -> FakeTrial:
        config = {"inner.rate": drawn[0], "task.shots": drawn[1]}
        return FakeTrial(name=name, status=status, config=config, last_result=report)

    return [
        trial("trial-0001", "TERMINATED", (0.03, 0), objective=0.5, round=4, over=1, rounds=4),
        trial("trial-0002", "TERMINATED", (0.1, 1), objective=0.25, round=1, over=0, rounds=4, done=1),
        trial("trial-0003", "TERMINATED", (0.2, 0), objective=0.0, round=2, over=1, rounds=4, failed=1),
        trial("trial-0004", "RUNNING", (0.05, 1), objective=0.75, round=2, over=0, rounds=4),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_table_on_a_terminal_and_a_line_elsewhere(
    tmp_path: Path, tiny: Tiny, terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = dimensions(searching(tiny, tmp_path, SPACE))
    progress = SearchProgress(found, trials=6, rounds=4)
    if terminal:
        caplog.set_level(logging.DEBUG, "metarepair.runs.progress")
    progress.setup()
    progress.on_step_end(trials=fake_trials())
    progress.on_step_end(trials=fake_trials())  # too soon after the first for another line
    progress.on_experiment_end(trials=fake_trials())
    assert [record.step.over for record in caplog.records] == [False, True]
    text = caplog.messages[-1]
    break_ = "\n" if terminal else "; "
    states = "search: 3 of 6 trials, 1 running, 2 waiting, 1 stopped early, 1 failed"
    assert f"{states}{break_}9 of 19 rounds" in text
    assert "best 75.0% trial-0004 (inner.rate 0.05, task.shots 2)" in text
    assert ("\n  trial-0002   stopped early        1/4      25.0%  inner.rate 0.1" in text) == terminal


def test_a_record_is_read_back_and_a_truncated_one_gives_none(tmp_path: Path) -> None:
    from metarepair.stages.search_trial import write_record

    record = write_record(tmp_path, TrialRecord(drawn={"inner.rate": 0.1}, rounds=2, objective=0.5))
    assert read_record(tmp_path) == record
    (tmp_path / "record.json").write_text(json.dumps(asdict(record))[:20])
    assert read_record(tmp_path) is None
