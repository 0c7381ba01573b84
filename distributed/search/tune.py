"""Search the settings on Ray Tune; write trials, table, figures and the best configuration to `<run>/search/`.

mine -> features -> distances -> trials on Ray Tune -> results

    inputs/             what trials read; without the D_fail that judges them
    trials/<trial>/     each trial's record and checkpoints
    tune/               Tune's own state, from which a killed search resumes
    trials.parquet …    the results (metarepair.search.results)
    manifest.json       written last
The same command resumes a killed search; finished trials are not repeated. Source: paper Sec. 5 ("Empirical
Selection"), and Eq. 8 for α and β.
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

from distributed.on_ray.corruption_plugins import plugins_of
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
from metarepair.search.trials import Trial, best_trial
from metarepair.stages.features import extract_all
from metarepair.stages.mining import MinedManifests, environments
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.search_inputs import TrialSetup, prepare_inputs, searched_config
from metarepair.stages.search_tracking import TrialTracking
from metarepair.stages.search_trial import TrialRecord, read_record
from tasks.errors import DataError, UserError
from tasks.storage.manifest import MANIFEST, begin, check_done, discard, require_manifest, write_manifest
from tasks.storage.paths import find, read_json, remove_tree, write_text
from tasks.storage.settings import Settings
from tasks.storage.stages import SEARCH, TARGET

logger = logging.getLogger(__name__)
TRIALS = "trials.json"
TUNE = "tune"  # folder of Tune's own state
NOISY = ("ray.tune", "ray.train", "ray.air")  # loggers whose lines would interrupt the progress


class TuneSearch:
    """The search of one run. If it is already complete with the same settings, it is skipped with a log line."""

    def __init__(self, config: Config) -> None:
        check_space(config)
        self.config = config
        self.pipeline = Pipeline(searched_config(config), executor_for)
        self.run: Run = self.pipeline.run

    def search(self, *, restart: bool = False) -> None:
        """Mine and extract features if that is not done yet, then run the trials; `restart` starts the trials over.

        Raises ConfigError, before any work, if the cluster has no room for one trial.
        """
        check_trial_fits(self.config)
        with self.pipeline.tracking:
            self._search(restart=restart)

    def _search(self, *, restart: bool) -> None:
        if restart or not (self.run.search / MANIFEST).is_file():
            self.pipeline.probe((), trains=True)
        mined, features = self._mined()
        if self.config.train.start == "joint":
            self.pipeline.joint()
        settings, inputs = search_settings(self.config), {**self.pipeline.here.inputs()}
        inputs |= {f"mined {role} {name}": manifest.digest for (role, name), manifest in mined.items()}
        inputs |= {f"features {role} {name}": manifest.digest for (role, name), manifest in features.items()}
        folder = self.run.search
        if restart:
            discard(folder)
        if check_done(folder, stage=SEARCH.title(), config=settings, inputs=inputs) is not None:
            trials = [Trial(**t) for t in read_json(folder / TRIALS)]
            logger.info(f"search: already complete, see {folder}")
        else:
            begin(folder, config=settings | placement(self.config), inputs=inputs)
            pipeline = self.pipeline
            setup = prepare_inputs(self.run, self.config, pipeline.here, mined, features, pipeline.executor)
            with TrialTracking(pipeline.tracking, setup).following():
                trials = self.try_all(setup)
            best = best_trial(trials)
            if best is not None and best.objective is not None:
                pipeline.tracking.figures({"best score": best.objective})
            self._write(trials, settings, inputs)
        logger.log(RESULTS, results_table(trials, self.config))

    def _mined(self) -> tuple[MinedManifests, MinedManifests]:
        """The manifests of the environments mined for the search, and of their features."""
        self.pipeline.mine()
        config = self.pipeline.config
        mined = {
            (e.role, e.name): require_manifest(e.folder, TARGET.remedy)
            for e in environments(self.run, config)
        }
        return mined, extract_all(self.run, config, mined, self.pipeline.executor)

    def try_all(self, setup: TrialSetup) -> list[Trial]:
        """Run the unfinished trials. Raises UserError if all failed, KeyboardInterrupt if stopped."""
        for attempt in range(2):
            with _quiet(), seeded(self.config):
                results = self._tuner(setup).fit()
            trials = sorted((self._trial(setup, result) for result in results), key=lambda t: t.name)
            if any(t.state == "unfinished" for t in trials):
                raise KeyboardInterrupt  # Tune handles the signal itself and returns normally
            if len(trials) == count_trials(self.config):
                break
            if attempt:
                raise DataError(
                    f"Ray Tune knows {len(trials)} trials, but the search has {count_trials(self.config)}: Tune's "
                    f"state in {self.run.search / TUNE} is damaged. Start the trials over with --restart."
                )
            # Tune was killed while writing its state, could read only part of it, and restarted with fewer trials.
            remove_tree(self.run.search / TUNE)
        failed = [t for t in trials if t.state == "failed"]
        if len(failed) == len(trials):
            raise UserError(
                f"All {len(trials)} trials of the search failed. The first, {failed[0].name}, failed with: "
                f"{failed[0].error} Fix that and run the same command again, or change the search and start over with "
                "--restart."
            )
        return trials

    def _tuner(self, setup: TrialSetup) -> Any:
        """The Tuner of a killed search, restored with its trials, or a new one."""
        from ray import tune

        from distributed.search.trainable import train_trial

        trainable = tune.with_parameters(train_trial, setup=setup, plugins=plugins_of(self.config))
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
                # A half-written or damaged state can raise any kind of error.
                logger.warning(
                    f"Ray Tune's own state cannot be read ({_words(error)}); trials resume from their records."
                )
                remove_tree(self.run.search / TUNE)
            else:
                return restored
        return self._new_tuner(trainable)

    def _new_tuner(self, trainable: Any) -> Any:
        from ray import tune

        from distributed.search.progress import SearchProgress

        search, searched, names = search_of(self.config), dimensions(self.config), build_names(self.config)
        progress = SearchProgress(searched, trials=count_trials(self.config), rounds=most_rounds(self.config))
        return tune.Tuner(
            trainable,
            param_space=param_space(self.config),
            tune_config=tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=search.trials,
                search_alg=build_searcher(self.config, trials_at_once(self.config)),
                scheduler=build_scheduler(self.config),
                reuse_actors=False,  # if a stopped trial's thread takes 2 s to end, the actor's next trial fails
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
        """One of Tune's trials: its own record, and the error that Tune saw it end with."""
        match = re.match(rf"{PREFIX}\d+", PurePosixPath(result.path).name)
        assert match is not None  # `build_names` names it so
        record = read_record(setup.trials / match[0]) or TrialRecord(drawn={})
        error = record.error or (None if result.error is None or record.over else _words(result.error))
        stopped = result.metrics is not None and result.metrics.get("done", False)
        return Trial(
            name=match[0],
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
        """Delete all but the newest `train.kept_checkpoints` checkpoints of each trial of a population.

        All were kept until now, because other trials could start from any of them.
        """
        for trial in find(self.run.search / "trials", f"{PREFIX}*"):
            for name in judged_environments(self.config):
                checkpoints = find(trial / name / "checkpoints", "checkpoint-*")
                for old in checkpoints[: -self.config.train.kept_checkpoints]:
                    remove_tree(old)


def search_settings(config: Config) -> Settings:
    """The settings that the trials and objectives of a search depend on, besides those of mining and features."""
    values = training_settings(config)
    values["search"] = search_of(config).settings(exclude={"max_concurrent", "max_failures"})
    values["judged by"] = list(judged_environments(config))
    values["repair"] = config.repair.settings(include={"tasks", "update", "validation_fraction"})
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of Tune, Train and Optuna for programmers: they would interrupt the progress on stderr."""
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
    """The error as one line: a UserError's own message, or the last line of any other."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return " ".join(str(cause).split())
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
