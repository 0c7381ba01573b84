"""`metarepair hypothesis`: test whether near experiences repair better, on all pairs of a mined and scored run.

mine -> score -> one fine-tune per experience and seed, each tested on all targets -> correlations, tables, figure

A work item is one fine-tune. Its result is a small file that is complete or absent, so a killed study resumes with the
missing ones. D_fail is not opened. metarepair.evaluation.hypothesis describes what is measured, and how.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from metarepair.adaptation.accuracy import accuracy_on
from metarepair.adaptation.repair_data import split_collected
from metarepair.config.run import Config
from metarepair.data.workspace import load_surroundings
from metarepair.evaluation.hypothesis import Study, summarise
from metarepair.features.confidence_tables import SCORE_AGAIN
from metarepair.methods import MethodContext, get_method
from metarepair.repairs.stage import repair_fairly
from metarepair.reports.hypothesis_figure import scatter
from metarepair.reports.hypothesis_table import describe, pairs_table, write_pairs
from metarepair.runs.layout import Run
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import Progress
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.stages.executor import ExecutorOf, in_process
from metarepair.stages.mining import MinedManifests, environments
from metarepair.stages.pipeline import Pipeline
from tasks.corruptions import CORRUPTIONS
from tasks.errors import ConfigError, DataError, DivergedError, StageError
from tasks.experiences.store import open_side
from tasks.storage.manifest import (
    MANIFEST,
    as_recorded,
    begin,
    content_hash,
    discard,
    require_manifest,
    verify_checksums,
)
from tasks.storage.names import remove_listed
from tasks.storage.paths import Place, read_json, read_table, write_text, writing
from tasks.storage.sealed_parts import missing_parts, seal
from tasks.storage.settings import Settings
from tasks.storage.stages import HYPOTHESIS, SCORE, TARGET

logger = logging.getLogger(__name__)
FEWEST = 4  # fewest corruptions: each target is correlated over the others, and that takes three


@dataclass(frozen=True)
class FineTune:
    """A fine-tune on one experience with one seed.

    `path` is its result; `made_of` is a digest of its settings and inputs.
    """

    experience: str
    seed: int
    path: Place
    made_of: str

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that its result is sealed with."""
        return {"fine-tune": self.experience, "seed": self.seed, "made of": self.made_of}


class HypothesisStudy:
    """The study of one run. What is already complete with the same settings is skipped, with a log line."""

    def __init__(self, config: Config, executor: ExecutorOf = in_process) -> None:
        self.config = config
        self.names = _corruptions(config)
        self.pipeline = Pipeline(config, executor)
        self.run: Run = self.pipeline.run

    def study(self, *, restart: bool = False) -> None:
        """Mine and score if that is not done yet, then measure.

        `restart` starts only the study over. Unaffected fine-tunes are kept, so trying other features costs only a
        new score.
        """
        if restart or not (self.run.hypothesis / MANIFEST).is_file():
            self.pipeline.probe(("finetune",), trains=False)
        self.pipeline.mine()
        self.pipeline.score()
        every = environments(self.run, self.config)
        mined: MinedManifests = {(e.role, e.name): require_manifest(e.folder, TARGET.remedy) for e in every}
        score = require_manifest(self.run.score, SCORE.remedy)
        verify_checksums(self.run.score, score)
        folder = self.run.hypothesis
        settings = as_recorded(folder, as_recorded(folder / "gains", study_settings(self.config)))
        repaired_from = {f"{role} {name}": manifest.digest for (role, name), manifest in mined.items()}
        repaired_from["deployed"] = self.pipeline.here.inputs()["deployed"]
        inputs = repaired_from | {"score": score.digest}
        if restart:
            self._discard(settings, repaired_from)

        def make() -> StageOutput:
            begin(folder / "gains", config=settings, inputs=repaired_from, sealed=True)
            return self._judge(self._fine_tune(mined, content_hash([settings, repaired_from])))

        run_stage(HYPOTHESIS, folder, make, config=settings, inputs=inputs)
        summary = read_json(folder / "summary.json")
        logger.log(RESULTS, describe(summary))

    def _discard(self, settings: Mapping[str, Any], repaired_from: Mapping[str, str]) -> None:
        """Delete the correlations, and the fine-tunes too if settings, failures or the deployed DNN have changed."""
        remove_listed(self.run.hypothesis, MANIFEST)
        try:
            begin(self.run.hypothesis / "gains", config=settings, inputs=repaired_from, sealed=True)
        except (StageError, DataError):
            discard(self.run.hypothesis)

    def _fine_tune(self, mined: MinedManifests, made_of: str) -> list[FineTune]:
        """Run every fine-tune whose result is missing or does not match its seal. Return all of them."""
        folder = self.run.hypothesis / "gains"
        seeds = self.config.repair.seeds
        items = [
            FineTune(name, seed, folder / f"{name}-{seed}.json", made_of)
            for name in self.names
            for seed in seeds
        ]
        missing = missing_parts(items)
        progress = Progress(HYPOTHESIS.name, len(items), "fine-tunes", done=len(items) - len(missing))
        build = partial(_build_worker, self.config, self.run, mined)
        for item, mean in self.pipeline.executor.map(build, missing):
            progress.advance(note=f"{item.experience}, seed {item.seed}: mean accuracy {mean:.1%}")
        return items

    def _judge(self, items: Sequence[FineTune]) -> StageOutput:
        """Write correlations, tables and the figure of all results."""
        folder = self.run.hypothesis
        extractor, distances_CC = read_distances(self.run.score / "fid.parquet", self.names)
        study = Study(
            names=self.names,
            seeds=self.config.repair.seeds,
            extractor=extractor,
            distances_CC=distances_CC,
            gains_SCC=_read_gains(items, self.names, self.config.repair.seeds),
        )
        summary = summarise(study, seed=self.config.seed)
        files = write_pairs(folder, pairs_table(study))
        write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        with writing(folder / "scatter.png") as part:
            part.write_bytes(scatter(study, summary))
        files += ["summary.json", "scatter.png", *(f"gains/{item.path.name}" for item in items)]
        return StageOutput(files=files, rows={"pairs": summary["pairs"]})


def study_settings(config: Config) -> Settings:
    """The settings that fine-tunes and their figures depend on, besides those of mining and scoring."""
    return config.settings(include={"seed", "model", "inner"}) | {
        "task": config.task.settings(include={"shots"}),
        "repair": config.repair.settings(exclude={"methods"}),
    }


def _corruptions(config: Config) -> tuple[str, ...]:
    """The study's corruptions in the paper's order. Raises ConfigError if pairs would be missing."""
    experiences, targets = set(config.mining.experiences), set(config.targets)
    if experiences != targets:
        lacking = [f"targets lacks {name}" for name in sorted(experiences - targets)]
        lacking += [f"mining.experiences lacks {name}" for name in sorted(targets - experiences)]
        raise ConfigError(
            "the hypothesis is tested on all pairs, so mining.experiences and targets must name the same "
            f"corruptions: {', '.join(lacking)}."
        )
    if len(targets) < FEWEST:
        raise ConfigError(
            f"targets names {len(targets)} corruptions, too few for a correlation within each target. Name at least "
            f"{FEWEST} corruptions in both targets and mining.experiences."
        )
    own = [name for name in config.targets if name not in CORRUPTIONS]
    return (*(name for name in CORRUPTIONS if name in targets), *own)


def _build_worker(config: Config, run: Run, mined: MinedManifests) -> Callable[[FineTune], float]:
    """Return the function that fine-tunes the DNN on one experience and tests it on all targets.

    Called on the machine that does the work.
    """
    here = load_surroundings(config)
    deployed = here.deployed
    targets = {
        t: open_side(run.target(t), "collect", mined["target", t], here.environment("test", t))
        for t in config.targets
    }

    def work(item: FineTune) -> float:
        name = item.experience
        source = here.environment("train", name)
        collect = open_side(run.experience(name), "collect", mined["experience", name], source)
        context, data = (
            MethodContext(config=config, seed=item.seed),
            split_collected(collect, config, item.seed, source),
        )
        model = repair_fairly(get_method("finetune"), deployed, data, context)
        if model.first_not_finite() is not None:
            raise DivergedError(
                f"the fine-tune on {name} (seed {item.seed}) diverged. Lower the rates in repair.rates."
            )
        accuracies = {
            t: accuracy_on(deployed, model.parameters, model.buffers, failures)
            for t, failures in targets.items()
        }
        validation = accuracy_on(deployed, model.parameters, model.buffers, data.validation)
        result = {"validation": validation, "notes": model.notes, "accuracies": accuracies}
        write_text(item.path, json.dumps(result, indent=1, allow_nan=False) + "\n")
        seal(item.path, item.identity)
        return float(np.mean(list(accuracies.values())))

    return work


def _read_gains(items: Sequence[FineTune], names: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Gains [S, C, C]: the deployed DNN has accuracy 0 on its failures, so a gain is the accuracy after repair."""
    gains_SCC = np.full((len(seeds), len(names), len(names)), np.nan)
    for item in items:
        accuracies = read_json(item.path)["accuracies"]  # sealed, so it is as it was written
        row = [float(accuracies[name]) for name in names]
        gains_SCC[list(seeds).index(item.seed), list(names).index(item.experience)] = row
    return gains_SCC


def read_distances(path: Place, names: Sequence[str]) -> tuple[str, np.ndarray]:
    """The extractor, and the distance of each experience (row) and target (column), as scored."""
    try:
        rows = read_table(path, SCORE_AGAIN).to_pylist()
        distances = {(row["experience"], row["target"]): float(row["distance"]) for row in rows}
        distances_CC = np.array([[distances[a, b] for b in names] for a in names])
        return str(rows[0]["extractor"]), distances_CC
    except (KeyError, IndexError) as error:
        raise DataError(f"{path} is damaged: it lacks rows or columns ({error}). {SCORE_AGAIN}") from error
