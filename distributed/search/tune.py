"""A configuration with a `search` in, `<run>/search/` out: the trials, their table and figures, the best configuration.

mine -> features -> distances -> trials on Ray Tune -> results

    inputs/             what trials read; no D_fail that they are judged by
    trials/<trial>/     each trial's record and checkpoints
    tune/               Tune's own state, by which a killed search goes on
    trials.parquet …    the results (metarepair.search.results)
    manifest.json       last
The same command goes on where a killed one was: trials that are over are not done again. Source: paper Sec. 5
("Empirical Selection"), and Eq. 8 for α and β.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from distributed.search.draws import (
    OBJECTIVE,
    OVER,
    PREFIX,
    build_names,
    build_scheduler,
    build_searcher,
    count_trials,
    most_rounds,
    param_space,
    seeded,
)
from distributed.search.room import check_trial_fits, placement, trial_resources, trials_at_once
from distributed.stages.executor import executor_for
from metarepair.config.run import Config
from metarepair.meta_training.meta_train import training_settings
from metarepair.runs.layout import Run
from metarepair.runs.logs import RESULTS
from metarepair.search.check import check_space
from metarepair.search.results import results_table, write_results
from metarepair.search.space import dimensions, judged_environments, search_of
from metarepair.search.trials import Trial
from metarepair.stages.features import extract_all
from metarepair.stages.mining import Mined, environments
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.search_inputs import TrialSetup, prepare_inputs, searched_config
from metarepair.stages.search_trial import TrialRecord, read_record
from tasks.errors import DataError, UserError
from tasks.storage.manifest import MANIFEST, begin, check_done, discard, require_manifest, write_manifest
from tasks.storage.paths import find, remove_tree, write_text
from tasks.storage.settings import Settings
from tasks.storage.stages import SEARCH, TARGET

logger = logging.getLogger(__name__)
TRIALS = "trials.json"
TUNE = "tune"  # folder of Tune's own state
NOISY = ("ray.tune", "ray.train", "ray.air")  # loggers whose lines would stand between those of the progress


class TuneSearch:
    """The search of one run. What is done with the same settings is skipped, with a log line."""

    def __init__(self, config: Config) -> None:
        check_space(config)
        self.config = config
        self.pipeline = Pipeline(searched_config(config), executor_for)
        self.run: Run = self.pipeline.run

    def search(self, *, restart: bool = False) -> None:
        """Mines and makes features where that is not done, then tries; `restart` begins the trials anew.

        Raises ConfigError where the cluster has no room for one trial, before anything is done.
        """
        check_trial_fits(self.config)
        if restart or not (self.run.search / MANIFEST).is_file():
            self.pipeline.probe((), trains=True)
        mined, features = self._mined()
        settings, inputs = search_settings(self.config), {**self.pipeline.here.inputs()}
        inputs |= {f"mined {role} {name}": found.digest for (role, name), found in mined.items()}
        inputs |= {f"features {role} {name}": found.digest for (role, name), found in features.items()}
        folder = self.run.search
        if restart:
            discard(folder)
        if check_done(folder, stage=SEARCH.title(), config=settings, inputs=inputs) is not None:
            trials = [Trial(**t) for t in json.loads((folder / TRIALS).read_text(encoding="utf-8"))]
            logger.info(f"search: done before, see {folder}")
        else:
            begin(folder, config=settings | placement(self.config), inputs=inputs)
            setup = prepare_inputs(self.run, self.config, mined, features, self.pipeline.executor)
            trials = self.try_all(setup)
            self._write(trials, settings, inputs)
        logger.log(RESULTS, results_table(trials, self.config))

    def _mined(self) -> tuple[Mined, Mined]:
        """Manifests of what was mined for the search, and of its features."""
        self.pipeline.mine()
        config = self.pipeline.config
        mined = {
            (e.role, e.corruption): require_manifest(e.folder, TARGET.remedy)
            for e in environments(self.run, config)
        }
        return mined, extract_all(self.run, config, mined, self.pipeline.executor)

    def try_all(self, setup: TrialSetup) -> list[Trial]:
        """Runs the trials that are not over. Raises UserError when all failed, KeyboardInterrupt when stopped."""
        for attempt in range(2):
            with _quiet(), seeded(self.config):
                results = self._tuner(setup).fit()
            trials = sorted((self._trial(setup, result) for result in results), key=lambda t: t.name)
            if any(t.state == "unfinished" for t in trials):
                raise KeyboardInterrupt  # Tune takes the signal for itself, and ends in order
            if len(trials) == count_trials(self.config):
                break
            if attempt:
                raise DataError(
                    f"Ray Tune knows of {len(trials)} trials where the search has {count_trials(self.config)}: its "
                    f"state in {self.run.search / TUNE} is damaged. Begin the trials anew with --restart."
                )
            # Tune could not read all of a state that it was killed over, and began anew with a part of the trials.
            remove_tree(self.run.search / TUNE)
        failed = [t for t in trials if t.state == "failed"]
        if len(failed) == len(trials):
            raise UserError(
                f"All {len(trials)} trials of the search failed; the first, {failed[0].name}, of: {failed[0].error} "
                "Mend that and run the same command again, or change the search and begin anew with --restart."
            )
        return trials

    def _tuner(self, setup: TrialSetup) -> Any:
        """The Tuner that was killed, with what it knows of its trials, or a new one."""
        from ray import tune

        from distributed.search.trainable import train_trial

        trainable = tune.with_parameters(train_trial, setup=setup)
        trainable = tune.with_resources(trainable, trial_resources(self.config))
        if tune.Tuner.can_restore(str(self.run.search / TUNE)):
            try:
                restored = tune.Tuner.restore(
                    str(self.run.search / TUNE),
                    trainable=trainable,
                    param_space=param_space(self.config),
                    resume_unfinished=True,
                    resume_errored=True,
                )
                restored.get_results()
            except Exception as error:
                # Half-written or damaged, Tune's state raises whatever reading it comes upon.
                logger.warning(
                    f"Ray Tune's own state cannot be read ({_words(error)}); trials go on by their records."
                )
                remove_tree(self.run.search / TUNE)
            else:
                return restored
        return self._new_tuner(trainable)

    def _new_tuner(self, trainable: Any) -> Any:
        from ray import tune

        from distributed.search.progress import SearchProgress

        search, found, names = search_of(self.config), dimensions(self.config), build_names(self.config)
        progress = SearchProgress(found, trials=count_trials(self.config), rounds=most_rounds(self.config))
        return tune.Tuner(
            trainable,
            param_space=param_space(self.config),
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=search.trials,
                search_alg=build_searcher(self.config, trials_at_once(self.config)),
                scheduler=build_scheduler(self.config),
                reuse_actors=False,  # a thread of a stopped trial that takes 2 s to end fails the trial that is next
                trial_name_creator=names,
                trial_dirname_creator=names,
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(self.run.search),
                stop={OVER: 1},
                failure_config=tune.FailureConfig(max_failures=search.max_failures),
                callbacks=[progress],
                verbose=0,
            ),
        )

    def _trial(self, setup: TrialSetup, result: Any) -> Trial:
        """What is known of one of Tune's trials: its own record, and what Tune saw it die of."""
        found = re.match(rf"{PREFIX}\d+", PurePosixPath(result.path).name)
        assert found is not None  # as `build_names` has it
        record = read_record(setup.trials / found[0]) or TrialRecord(drawn={})
        error = record.error or (None if result.error is None or record.over else _words(result.error))
        stopped = result.metrics is not None and result.metrics.get("done", False)
        return Trial(
            name=found[0],
            state=(
                "failed"
                if error
                else "finished"
                if record.over
                else "stopped early"
                if stopped
                else "unfinished"
            ),
            objective=None if error else record.objective,
            rounds=record.rounds,
            seconds=record.seconds,
            drawn=record.drawn,
            error=error,
        )

    def _write(self, trials: Sequence[Trial], settings: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        folder = self.run.search
        if search_of(self.config).scheduler == "pbt":
            self._prune()
        write_text(folder / TRIALS, json.dumps([asdict(t) for t in trials], indent=1) + "\n")
        files = [TRIALS, *write_results(folder, trials, self.config)]
        rows = {"trials": len(trials), "failed": sum(t.state == "failed" for t in trials)}
        write_manifest(folder, stage=SEARCH.title(), config=settings, inputs=inputs, files=files, rows=rows)

    def _prune(self) -> None:
        """Of the checkpoints of a population, all of which others could begin at, as many as training keeps."""
        for trial in find(self.run.search / "trials", f"{PREFIX}*"):
            for name in judged_environments(self.config):
                checkpoints = find(trial / name / "checkpoints", "checkpoint-*")
                for old in checkpoints[: -self.config.train.kept_checkpoints]:
                    remove_tree(old)


def search_settings(config: Config) -> Settings:
    """The settings that a search's trials and objectives depend on, besides those of mining and features."""
    values = training_settings(config)
    values["search"] = search_of(config).settings(exclude={"max_concurrent", "max_failures"})
    values["judged by"] = list(judged_environments(config))
    values["repair"] = config.repair.settings(include={"tasks", "update", "validation_fraction"})
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what Tune, Train and Optuna have to say to programmers out of the progress, which is on stderr."""
    import optuna

    before = {name: logging.getLogger(name).level for name in NOISY}
    optuna_before = optuna.logging.get_verbosity()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(optuna_before)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _words(error: BaseException | str) -> str:
    """An error as one line: a UserError's own words, else the last thing that was said."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return " ".join(str(cause).split())
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
