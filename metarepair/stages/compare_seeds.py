"""`metarepair compare` with `compare.vary: everything`: a run of its own for each seed, then one report.

Seeds come one after the other, so a comparison that is cut short has complete seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.compare.check import check_settings
from metarepair.compare.plan import write_plan
from metarepair.compare.results import write_results
from metarepair.compare.seeds import config_of_seed, varies_everything
from metarepair.compare.units import compared_units
from metarepair.config.run import Config
from metarepair.runs.layout import Run, open_run, without_empty_run
from metarepair.runs.logs import RESULTS
from metarepair.stages.compare import Comparison
from metarepair.stages.executor import ExecutorOf, in_process
from tasks.errors import StageError
from tasks.storage.run_lock import locked

logger = logging.getLogger(__name__)


class SeedsOfEverything:
    """A comparison for each seed, in a run of its own. Each skips what is complete, as any comparison."""

    def __init__(self, config: Config, executor: ExecutorOf = in_process) -> None:
        check_settings(config)
        self.config, self.executor = config, executor
        self.configs = {seed: config_of_seed(config, seed) for seed in config.compare.seeds}
        self.run: Run = open_run(config)

    def compare(self, *, restart: bool = False) -> None:
        """Compare seed by seed, then write the report of all. Only one seed's data are held at a time."""
        if restart:
            self._restart()
        for seed in self.configs:
            self._compare(seed)
        made_in = {seed: self.run.of_seed(seed) for seed in self.configs}
        for line in write_results(self.run, self.config, compared_units(self.config), made_in=made_in):
            logger.log(RESULTS, line)

    def _compare(self, seed: int) -> None:
        with self._comparison(seed) as comparison:
            comparison.check()
            self._write_plan()  # only now, so that a comparison that is refused leaves no run
            logger.info(f"compare seed {seed}: {comparison.run.root}")
            comparison.compare()

    def _restart(self) -> None:
        """Restart the comparisons of all seeds before the first repair, so that no seed keeps other settings."""
        for seed in self.configs:
            if self.run.of_seed(seed).compare.exists():
                self._restart_one(seed)

    def _restart_one(self, seed: int) -> None:
        with self._comparison(seed) as comparison:
            comparison.restart()

    @contextmanager
    def _comparison(self, seed: int) -> Iterator[Comparison]:
        """The comparison of a seed, with its run locked for the block. A StageError says how other verbs reach it."""
        config = self.configs[seed]
        with without_empty_run(config):
            comparison = Comparison(config, self.executor)
            try:
                with locked(comparison.run.root, "compare"):
                    yield comparison
            except StageError as error:
                raise StageError(
                    f"{error} This is about the run of seed {seed}: to `compare`, give FILE as now; to another verb, "
                    f"add --storage {config.storage_path} --set 'name=\"{config.name}\"' --set seed={config.seed}."
                ) from error

    def _write_plan(self) -> None:
        planned = self.config.compare
        write_plan(
            self.run.compare,
            targets=self.config.targets,
            methods=planned.methods,
            seeds=planned.seeds,
            config=self.config.model_dump(mode="json"),
        )


def comparison_of(config: Config, executor: ExecutorOf = in_process) -> Comparison | SeedsOfEverything:
    """The comparison that the settings ask for."""
    return (SeedsOfEverything if varies_everything(config) else Comparison)(config, executor)
