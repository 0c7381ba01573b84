"""Run a trial for Tune: in its own process, or as a Ray Train run of `workers` workers.

A trial on Ray Train reserves no CPU itself: trials that each held one and waited for their workers could block each
other forever.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distributed.on_ray.corruption_plugins import Versions, check_worker
from distributed.on_ray.failures import read_failure, write_failure
from distributed.search.draws import OBJECTIVE, OVER, ROUND, drawn_of
from distributed.stages.train import fit
from metarepair.config.load import parse_config
from metarepair.config.run import Config
from metarepair.data.workspace import pick_device
from metarepair.runs.context import LocalContext
from metarepair.runs.logs import print_on_worker
from metarepair.search.space import dimensions, search_of
from metarepair.stages.search_inputs import TrialSetup
from metarepair.stages.search_trial import (
    Donor,
    JointTraining,
    TrialRecord,
    begin_trial,
    read_record,
    trial_settings,
    write_record,
)
from tasks.errors import ConfigError, DivergedError, UserError
from tasks.storage.paths import parse_json

DONOR = "donor.json"


def train_trial(config: dict[str, Any], *, setup: TrialSetup, plugins: Versions) -> None:
    """Tune's trainable: report after every round; the last report says that the trial is over.

    A ConfigError or DivergedError would recur, so it becomes the trial's result. Any other error is raised, and Tune
    starts the trial again.
    """
    from ray import tune

    check_worker(plugins)  # outside the block that records a ConfigError as the trial's result
    name, donor = tune.get_context().get_trial_name(), _donor()
    drawn = drawn_of(dimensions(setup.config), config)
    record = begin_trial(setup, name, drawn, donor)
    if record.over:
        _report(setup, name, record)
        return
    try:
        settings = trial_settings(setup, name, drawn)
        if settings is None:
            _report(setup, name, _over(setup, name, replace(record, objective=0.0)))
        elif settings.workers == 0:
            _train_here(setup, settings, record, donor)
        else:
            _train_on_ray(setup, settings, record, donor)
    except (ConfigError, DivergedError) as error:
        before = read_record(setup.trials / name) or record
        _report(setup, name, _over(setup, name, replace(before, error=str(error))))


def _over(setup: TrialSetup, name: str, record: TrialRecord) -> TrialRecord:
    return write_record(setup.trials / name, replace(record, over=True))


def _donor() -> Donor | None:
    """The checkpoints that Tune wants the trial to start from; None for the trial's own newest ones."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Donor(**parse_json((Path(folder) / DONOR).read_text(encoding="utf-8")))


def _report(setup: TrialSetup, name: str, record: TrialRecord, *, episode: int | None = None) -> None:
    """Report a round to Tune. With pbt, add a pointer to our checkpoints, so that other trials can start from them."""
    from ray import tune

    if episode is None or search_of(setup.config).scheduler != "pbt":
        tune.report(metrics_of(record))
        return
    with tempfile.TemporaryDirectory() as folder:
        donor = Donor(trial=name, rounds=record.rounds, episode=episode)
        (Path(folder) / DONOR).write_text(json.dumps(asdict(donor)), encoding="utf-8")
        tune.report(metrics_of(record), checkpoint=tune.Checkpoint.from_directory(folder))


def metrics_of(record: TrialRecord) -> dict[str, float]:
    """The metrics for searcher, scheduler and progress. A failed trial repairs nothing, so its objective is 0."""
    failed = record.error is not None
    return {
        OBJECTIVE: 0.0 if failed or record.objective is None else record.objective,
        ROUND: record.rounds,
        OVER: int(record.over),
        "rounds": record.of,
        "failed": int(failed),
        "seconds": record.seconds,
    }


def _kept(settings: Config, setup: TrialSetup) -> int | None:
    return None if search_of(setup.config).scheduler == "pbt" else settings.train.kept_checkpoints


def _train_here(setup: TrialSetup, settings: Config, record: TrialRecord, donor: Donor | None) -> None:
    device, kept = pick_device(settings.device), _kept(settings, setup)
    training = JointTraining(
        setup, settings, lambda folder: LocalContext(folder=folder, device=device, kept=kept), kept=kept
    )
    for latest in training.records(record, donor, training.total):
        _report(setup, settings.name, latest, episode=training.episode_after(latest.rounds))


def _train_on_ray(setup: TrialSetup, settings: Config, record: TrialRecord, donor: Donor | None) -> None:
    """Train on a Ray Train group. Ray Train's callback reports each round to Tune.

    With pbt, we report the last round before each exchange ourselves: a report of the callback cannot carry a pointer
    to checkpoints, and a population pauses at its exchanges anyway.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    folder = setup.trials / settings.name
    options: dict[str, Any] = {"setup": setup, "record": asdict(record), "donor": donor}
    search = search_of(setup.config)
    if search.scheduler != "pbt":
        fit(_loop, options | {"until": None}, settings, folder, callbacks=[TuneReportCallback()])
        _report(setup, settings.name, _require_record(setup, settings))
        return
    while not record.over:
        until = (record.rounds // search.perturbation_rounds + 1) * search.perturbation_rounds
        fit(_loop, options | {"until": until}, settings, folder)
        record = _require_record(setup, settings)
        episode = min(record.rounds * settings.train.round_episodes, settings.train.episodes)
        _report(setup, settings.name, record, episode=episode)
        donor = Donor(trial=settings.name, rounds=record.rounds, episode=episode)
        options |= {"record": asdict(record), "donor": donor}


def _require_record(setup: TrialSetup, settings: Config) -> TrialRecord:
    record = read_record(setup.trials / settings.name)
    assert record is not None  # rank 0 wrote it after every round
    return record


def _loop(options: dict[str, Any]) -> None:
    """The training function of one rank."""
    import ray.train

    from distributed.on_ray.context import RayContext

    print_on_worker()
    setup, settings = options["setup"], parse_config(options["config"])
    folder, kept = setup.trials / settings.name, _kept(settings, setup)
    if read_failure(folder) is not None:
        return
    try:
        training = JointTraining(
            setup, settings, lambda place: RayContext(folder=place, kept=kept), kept=kept
        )
        until = training.total if options["until"] is None else options["until"]
        for latest in training.records(TrialRecord(**options["record"]), options["donor"], until):
            # The trial is over once this run has ended: until then, Tune could stop it halfway through its end.
            ray.train.report(metrics_of(latest) | {OVER: 0})
    except UserError as error:
        write_failure(folder, error)
        raise
