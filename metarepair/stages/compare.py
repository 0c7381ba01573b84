"""`metarepair compare`: repair for every target by every method with every seed, then judge and report.

The executor runs each repair, and the judging of each target, as one piece. A target's D_fail is opened only after all
repairs for that target are complete.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from metarepair.compare.check import check_methods, check_settings
from metarepair.compare.judge import is_judged, judge, other_images
from metarepair.compare.pair import load_pair, write_pair
from metarepair.compare.plan import write_plan
from metarepair.compare.prepare import discard_stale, prepare_method
from metarepair.compare.results import write_results
from metarepair.compare.seeds import varies_everything
from metarepair.compare.units import ComparedRepair, compared_units, done_unit, repair_compared
from metarepair.config.run import Config
from metarepair.methods import get_method
from metarepair.runs.layout import Run
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import Progress
from metarepair.stages.executor import ExecutorOf, in_process
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.together import each_at_once
from tasks.errors import StageError
from tasks.storage.manifest import MANIFEST, discard
from tasks.storage.paths import find, remove_tree
from tasks.storage.remote import RemotePath

logger = logging.getLogger(__name__)


class Comparison:
    """All repairs of a comparison. Those already complete with the same settings are skipped."""

    def __init__(self, config: Config, executor: ExecutorOf = in_process) -> None:
        assert not varies_everything(config), "SeedsOfEverything compares these"
        check_settings(config)
        self.config = config
        self.pipeline = Pipeline(config, executor)
        self.executor = self.pipeline.executor
        self.run: Run = self.pipeline.run
        self.units = compared_units(config)

    def compare(self, *, restart: bool = False) -> None:
        """Mine, score and train as the methods need; then prepare the methods, repair, judge and report."""
        with self.pipeline.tracking:
            self._compare(restart=restart)

    def _compare(self, *, restart: bool) -> None:
        if restart:
            self.restart()
        else:
            self.check()
            self._stages_before()
        for name in self.config.compare.methods:
            self._prepare(name)
        self._repair()
        self._judge()
        for line in write_results(self.run, self.config, self.units):
            logger.log(RESULTS, line)

    def check(self, *, restart: bool = False) -> None:
        """Raise ConfigError if a method cannot work here, or if a repair is to be made and the gradients are wrong."""
        check_methods(self.config, self.pipeline.here)
        if any("experiences" in get_method(name).uses for name in self.config.compare.methods):
            self.pipeline.check_start()
        methods = self.config.compare.methods
        folders = (self.run.compared(unit.target, unit.method, unit.seed) for unit in self.units)
        if restart or not all((folder / MANIFEST).is_file() for folder in folders):
            self.pipeline.probe(
                methods, trains=any("experiences" in get_method(name).uses for name in methods)
            )

    def restart(self) -> None:
        """Run the stages before, and delete the repairs and the preparations with other settings."""
        self.check(restart=True)
        self._stages_before()
        self._restart()  # only now: the stages before may refuse

    def _stages_before(self) -> None:
        """Run the stages before. Raises StageError if they have other settings, which `compare --restart` keeps."""
        self.pipeline.mine()
        used = {what for name in self.config.compare.methods for what in get_method(name).uses}
        verb = "score"
        try:
            if used & {"experiences", "merged"} or (
                "joint" in used and self.config.joint.draw == "confidence"
            ):
                self.pipeline.score()
            verb = "train"
            self.pipeline.before_targets(self.config.compare.methods)
            if "experiences" in used:
                self.pipeline.meta_train()
        except StageError as error:
            raise StageError(
                f"{error} `compare --restart` keeps the stages before it, so run `metarepair {verb} --config FILE "
                "--restart` instead. The repairs that start from what is then made again are refused until `compare "
                "--restart` makes them again, too; mining stays."
            ) from error

    def pair(self, first: str, second: str) -> None:
        """Compare two methods example by example, for every target and the first seed of a finished comparison.

        `check_pair` has checked the names. Raises StageError if the run was mined with other settings or data, as the
        pictures would show other images.
        """
        self.pipeline.mined()
        test = self.pipeline.here.split("test")
        for target in self.config.targets:
            pair = load_pair(self.run, target, (first, second), self.config.compare.seeds[0])
            for line in write_pair(self.run, pair, test, self.pipeline.here.environment("test", target)):
                logger.log(RESULTS, line)

    def _restart(self) -> None:
        """Delete the repairs of the configured targets and methods, and preparations with other settings."""
        for name in self.config.compare.methods:
            for target in self.config.targets:
                folder = self.run.compare / target / name
                for done in find(folder, MANIFEST, deep=True):
                    discard(done.parent)
                remove_tree(folder)
            discard_stale(self.run, self.config, name, self.pipeline.here)

    def _prepare(self, name: str) -> None:
        pieces = self.executor.map_in_order
        prepare_method(self.run, self.config, name, self.pipeline.here, map_pieces=pieces)

    def _repair(self) -> None:
        here, planned = self.pipeline.here, self.config.compare
        write_plan(
            self.run.compare,
            targets=self.config.targets,
            methods=planned.methods,
            seeds=planned.seeds,
            config=self.config.model_dump(mode="json"),
            images=other_images(self.config, here),
        )
        waiting = [unit for unit in self.units if done_unit(self.run, self.config, unit, here) is None]
        done = len(self.units) - len(waiting)
        if not waiting:
            logger.info(f"compare: all {done} repairs are already complete")
            return
        progress = Progress("compare", len(self.units), "repairs", done=done)

        def repair(unit: ComparedRepair) -> None:
            self.executor.call(repair_compared, self.run, unit, here)
            progress.advance(note=unit.words)

        each_at_once(repair, waiting, at_once=self.executor.repairs_at_once)

    def _judge(self) -> None:
        by_target = [[u for u in self.units if u.target == target] for target in self.config.targets]
        here = self.pipeline.here
        waiting = [
            units for units in by_target if not all(is_judged(self.run, self.config, u, here) for u in units)
        ]

        def judge_target(units: Sequence[ComparedRepair]) -> None:
            self.executor.call(judge, self.run, units, self.pipeline.here)

        # An object store cannot append: if two D_fail were opened at once, one of the two log entries would be lost.
        at_once = 1 if isinstance(self.run.root, RemotePath) else self.executor.repairs_at_once
        each_at_once(judge_target, waiting, at_once=at_once)
