"""Repair a user's model from photographs: plan within a budget, run all stages, hand over the repaired weights.

`fix` is a run. Its settings come from the data and from a measurement of this machine; they are written as `fix.yaml`
before the first training, and `fix.json` records what they were made from. A later call with the same options reads
both and resumes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from metarepair.config.load import config_text, load_config, parse_config
from metarepair.config.photographs import NAME
from metarepair.config.run import Config
from metarepair.config.user_defaults import user_defaults
from metarepair.fixing.plan import Counts, Plan, plan_fix
from metarepair.fixing.settings import count, planned_settings
from metarepair.fixing.speeds import measure
from metarepair.reports import load_results
from metarepair.reports.outcome import Outcome
from metarepair.runs.heartbeat import heartbeat
from metarepair.runs.layout import FIX_RECORD, FIX_SETTINGS, Run, run_of
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import duration
from metarepair.stages.executor import ExecutorOf, in_process
from metarepair.stages.hand_over import HandOver, read_record
from metarepair.stages.images import read_user_images
from metarepair.stages.pipeline import Pipeline, check_protected
from metarepair.stages.suspicious import without_suspicious
from metarepair.stages.without_clean import FOLDER, check_stand_in, stand_in
from metarepair.weights import is_named
from tasks.errors import ConfigError, StageError
from tasks.splits import LEARN
from tasks.storage.paths import Place, local, place, remove_tree, write_text
from tasks.storage.settings import difference, plain

logger = logging.getLogger(__name__)
VERSION = 1
PLANNING_S = 30.0  # read some hundred photographs, and measure
WHERE = ("name", "storage_path", "workers")  # may differ when a run is resumed


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for: settings from the command line, the budget, and what the photographs are.

    without_clean: whether there are no clean images. The settings then name all photographs in their place, of which
    those that the model gets right will stand in.
    drop_suspicious: how many of the failures to leave out, those with the most suspicious labels first.
    """

    settings: Mapping[str, Any]
    budget_s: float
    only_failures: bool = False
    without_clean: bool = False
    drop_suspicious: int = 0

    def __post_init__(self) -> None:
        if self.drop_suspicious < 0:
            raise ConfigError(
                f"--drop-suspicious {self.drop_suspicious}: give how many failures to leave out, 0 or more."
            )

    @cached_property
    def config(self) -> Config:
        """The settings before a plan. Raises ConfigError."""
        return parse_config(user_defaults(self.settings), where="the command line")

    @property
    def knows_only_failures(self) -> bool:
        """Whether all photographs that judge are failures.

        So it is if the user gave failures only. Without clean images, the right photographs stand in for these, and the
        wrong ones alone judge, unless there is a holdout.
        """
        without_holdout = "holdout" not in self.settings["environments"][NAME]
        return without_holdout if self.without_clean else self.only_failures

    def record(self) -> dict[str, Any]:
        """What a plan depends on, as plain values; the folder may be moved, and resumed with other workers."""
        settings = {key: value for key, value in self.settings.items() if key not in WHERE}
        asked = {"budget_s": self.budget_s, "drop_suspicious": self.drop_suspicious}
        found: dict[str, Any] = plain(settings | asked)
        return found | {"only_failures": self.only_failures}


class Fix:
    """One `fix`, from its request to the weights that are handed over."""

    def __init__(
        self, request: Request, executor: ExecutorOf = in_process, *, show_images: bool = True
    ) -> None:
        self.request, self._executor, self._show_images = request, executor, show_images
        self.run: Run = run_of(request.config)
        self._weights = HandOver(self.run, request.config.model)
        self._last: Pipeline | None = None
        _refuse_inputs_inside(self.run.root, request.settings)

    def restart(self) -> None:
        """Delete everything that an earlier `fix` made here, once the model and the data could be read.

        Weights are deleted only if the record says that they were handed over.
        """
        self._weights.refuse_foreign()
        pipeline = self._pipeline(self.request.config)
        pipeline.restart("mine")
        names = (*self._weights.names(), FIX_SETTINGS, FIX_RECORD)  # the record last: it names the weights
        for name in names:
            (self.run.root / name).unlink(missing_ok=True)
        remove_tree(self.run.root / FOLDER)

    def plan(self) -> Config:
        """Return the planned settings: those of an earlier call, or new ones, which are written into the run."""
        self._weights.refuse_foreign()
        with heartbeat("plan", planned_s=PLANNING_S):
            return self._held() or self._new()

    def repair(self, config: Config) -> Outcome:
        """Run all stages with planned settings, and hand over. Prints the table and the sentence."""
        planned_s = float(read_record(self.run)["plan"]["total_s"])
        pipeline = self._pipeline(config)
        torch.set_num_threads(config.train.threads)
        with heartbeat("fix", planned_s=planned_s):
            pipeline.whole()
            result = load_results(self.run, [NAME])[0]
            known = self.request.knows_only_failures
            outcome = self._weights.write(result, pipeline.here.deployed, only_failures=known)
        logger.log(RESULTS, outcome.words)
        return outcome

    def _pipeline(self, config: Config) -> Pipeline:
        """The stages with these settings. What they have in common with the last ones is not noted again."""
        self._last = Pipeline(config, self._executor, show_images=self._show_images, after=self._last)
        return self._last

    def _held(self) -> Config | None:
        """The settings of an earlier call. Raises StageError if it was for another request."""
        path = self.run.root / FIX_RECORD
        if not path.is_file() or not (self.run.root / FIX_SETTINGS).is_file():
            return None
        lines = difference(read_record(self.run)["given"], self.request.record())
        if lines:
            raise StageError(
                f"{self.run.root} holds a repair with other options: {'; '.join(lines)}. Give the options of then, "
                "another --out, or --restart to start over."
            )
        if self.request.without_clean:
            check_stand_in(self.run, self.request.config)
        logger.info(f"{self.run.root / FIX_SETTINGS}: planned before; the run is resumed")
        where = {key: self.request.settings[key] for key in WHERE if key in self.request.settings}
        return load_config(local(self.run.root / FIX_SETTINGS), [], **where)

    def _new(self) -> Config:
        config, given = self.request.config, self.request.settings
        check_protected(config)
        if self.request.without_clean:
            given = stand_in(self.run, config, given)
            config = parse_config(user_defaults(given))
        pipeline = self._pipeline(config)
        pipeline.check_clean()
        read_user_images(self.run, config, pipeline.here)
        if self.request.drop_suspicious:
            given = without_suspicious(given, config, pipeline.here, first=self.request.drop_suspicious)
            config = parse_config(user_defaults(given))
            pipeline = self._pipeline(config)
        counts = count(config, pipeline.here)
        logger.info(f"of the photographs to learn from, the model gets {counts.failures} wrong")
        if self.request.only_failures:
            _warn_of_right(counts, pipeline)
        logger.info("measure how fast the model trains and classifies here, for about ten seconds")
        speeds, threads = measure(config, pipeline.here)
        plan = plan_fix(
            self.request.budget_s,
            speeds,
            counts,
            workers=config.workers,
            kit=config.kit is not None,
            refine=config.refine,
        )
        logger.log(RESULTS, f"A budget of {duration(self.request.budget_s)} buys {plan.words}")
        planned = parse_config(planned_settings(user_defaults(given), plan, threads=threads))
        record = {
            "version": VERSION,
            "given": self.request.record(),
            "counts": asdict(counts),
            "speeds": asdict(speeds),
            "plan": asdict(plan) | {"total_s": plan.total_s},
        }
        write_text(self.run.root / FIX_SETTINGS, _heading(self.request, plan) + config_text(planned))
        write_text(self.run.root / FIX_RECORD, json.dumps(record, indent=1) + "\n")
        return planned


def _refuse_inputs_inside(root: Place, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if the model, the photographs or the clean images lie in the folder that `fix` writes."""
    environment = settings["environments"][NAME]
    given = {
        "--weights": settings.get("model", {}).get("weights"),
        "--images (or --failures)": environment.get("images") or environment.get("table"),
        "--holdout": environment.get("holdout"),
        "--clean": settings.get("data", {}).get("root"),
        "--kit": settings.get("kit"),
    }
    for option, text in given.items():
        if text is not None and not is_named(text) and _inside(place(text), root):
            raise ConfigError(
                f"{option} {text} lies inside --out {root}, where fix writes, and deletes what it made before. Give "
                "another --out."
            )


def _inside(path: Place, root: Place) -> bool:
    if isinstance(path, Path) and isinstance(root, Path):
        return path.resolve().is_relative_to(root.resolve())
    return f"{path}/".startswith(f"{root}/")


def _warn_of_right(counts: Counts, pipeline: Pipeline) -> None:
    """Log how many of the photographs that were given as failures the model gets right, if any."""
    learned = int((pipeline.here.environment("test", NAME).parts_N == LEARN).sum())
    if right := learned - counts.failures:
        logger.warning(
            f"--failures: of its {learned} photographs to learn from, the model gets {right} right; these are not "
            "failures, and are not learned from as such. If they are photographs of the setting, right and wrong, give "
            "them as --images: what a repair breaks among them is then known."
        )


def _heading(request: Request, plan: Plan) -> str:
    return (
        "# Written by `metarepair fix`. The same run without fix: metarepair run --config fix.yaml --storage FOLDER\n"
        f"# Budget {duration(request.budget_s)}: {plan.words}\n"
    )
