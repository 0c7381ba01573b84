"""A configuration in, a run's stages done in order out; each stage is resumable and can be run alone.

mine -> score (features, distances, confidence) -> train -> repair (and evaluate) -> report
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from distributed.features import all_distances, extract_all, feature_name
from distributed.mining import environments, mine_all
from distributed.train import train_here, train_on_ray
from metarepair.checkpoint import newest_checkpoint, read_state
from metarepair.config import Config
from metarepair.deploy import Surroundings, load_surroundings, pick_device
from metarepair.features import SPECS, distance_name
from metarepair.layout import Run, open_run
from metarepair.meta_train import training_settings
from metarepair.methods import get_method
from metarepair.repair_stage import repair_target
from metarepair.reports import load_results
from metarepair.reports.figures import heat_map
from metarepair.reports.html import write_report
from metarepair.reports.table import results_table
from metarepair.score import TARGET_SUFFIX, confidence_of, describe_confidence, scores_of, write_scores
from tasks.confidence import choose_experiences
from tasks.corruptions import category_of
from tasks.errors import ConfigError, DataError, StageError, unknown_name
from tasks.manifest import check_done, difference, discard, require_manifest, write_manifest, write_text

Stage = Literal["mine", "score", "train", "repair", "report"]
STAGES: tuple[Stage, ...] = ("mine", "score", "train", "repair", "report")
Say = Callable[[str], None]


class Pipeline:
    """The stages of one run. A stage that is done with the same settings is skipped and said to be."""

    def __init__(self, config: Config, say: Say) -> None:
        self.config, self.say = config, say
        _check_names(config)
        self.run: Run = open_run(config)

    @cached_property
    def here(self) -> Surroundings:
        return load_surroundings(self.config, device=self.device)

    @property
    def device(self) -> torch.device:
        """The driver's device: with workers, it needs no GPU of its own."""
        if self.config.workers > 0 and not torch.cuda.is_available():
            return torch.device("cpu")
        return pick_device(self.config.device)

    def restart(self, stage: Stage) -> None:
        """Deletes a stage and those after it, but only once what it needs could be read."""
        if stage != "report":
            self.here.inputs()
        folders = {
            "mine": [self.run.root / "experiences", self.run.root / "targets"],
            "score": [self.run.features, self.run.score],
            "train": [self.run.root / "meta"],
            "repair": [self.run.root / "repaired"],
            "report": [self.run.report],
        }
        for name in STAGES[STAGES.index(stage) :]:
            for folder in folders[name]:
                for done in sorted(folder.rglob("manifest.json")):
                    discard(done.parent)
                shutil.rmtree(folder, ignore_errors=True)

    def mine(self) -> None:
        """Experiences from the training split, targets from the test split."""
        mined = mine_all(self.run, self.config, self.here)
        for (role, name), manifest in mined.items():
            examined = sum(manifest.facts["examined"].values())
            right = sum(manifest.facts["correct"].values())
            rows = manifest.rows
            missing = [self.here.split("test").classes[i] for i in manifest.facts["classes_without_failures"]]
            note = f"; no failures collected of {', '.join(missing)}" if missing else ""
            self.say(
                f"{role:10s} {name:18s} accuracy {right / examined:6.1%} of {examined}, "
                f"{rows['collect']} collected, {rows['fail']} left to D_fail{note}"
            )

    def score(self) -> None:
        """Features of all environments, distances of all pairs, confidence of each target's experiences."""
        run, config = self.run, self.config
        mined = {
            (e.role, e.corruption): require_manifest(e.folder, "Mine it first: metarepair mine --config …")
            for e in environments(run, config)
        }
        features = extract_all(run, config, mined)
        settings = config.model_dump(mode="json", include={"targets", "experiences"})
        settings["mined"] = list(config.mining.experiences)
        inputs = {"features": features.digest}
        if check_done(run.score, stage="score", config=settings, inputs=inputs) is not None:
            self.say(f"score: done before, see {run.score}")
            return
        found = environments(run, config)
        paths = [run.features / feature_name(e.role, e.corruption) for e in found]
        matrix = all_distances(paths, workers=config.workers)
        extractor = features.facts["extractor"]
        scores = scores_of(
            matrix, config.mining.experiences, config.targets, extractor=extractor, rows=features.rows
        )
        confidences = {t: confidence_of(scores, t, config.experiences) for t in config.targets}
        names = [e.corruption + (TARGET_SUFFIX if e.role == "target" else "") for e in found]
        files = write_scores(run.score, scores, matrix, names, confidences)
        pairs = {(a, b): float(matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
        label = distance_name(extractor)
        picture = heat_map(pairs, names, _category, f"Distances of {len(names)} environments", label)
        (run.score / "heatmap.png").write_bytes(picture)
        write_manifest(
            run.score, stage="score", config=settings, inputs=inputs, files=[*files, "heatmap.png"]
        )
        for target, confidence in confidences.items():
            self.say(describe_confidence(target, confidence, scores))
        self.say(f"{label}: {run.score / 'heatmap.png'}")

    def train(self) -> None:
        """θ_meta of each target."""
        for target in self.config.targets:
            self._train(target)

    def _train(self, target: str) -> None:
        run, config, folder = self.run, self.config, self.run.meta(target)
        score = require_manifest(run.score, "Score first: metarepair score --config …")
        settings = training_settings(config)
        inputs = {"score": score.digest, **self.here.inputs()}
        stage = f"train {target}"
        if check_done(folder, stage=stage, config=settings, inputs=inputs) is not None:
            self.say(f"train {target}: done before, see {folder}")
            return
        _begin(folder, settings, inputs)
        started = time.monotonic()
        if config.workers == 0:
            train_here(run, config, target, self.device)
        else:
            train_on_ray(run, config, target)
        checkpoint = newest_checkpoint(folder)
        state = read_state(checkpoint) if checkpoint is not None else None
        if checkpoint is None or state is None or state["episode"] != config.train.episodes:
            raise DataError(
                f"{folder} has no complete checkpoint of the last episode. Run the command again."
            )
        shutil.copyfile(checkpoint / "model.safetensors", folder / "model.safetensors")
        write_text(folder / "metrics.json", json.dumps(state["history"]))
        write_manifest(
            folder,
            stage=stage,
            config=settings,
            inputs=inputs,
            files=["model.safetensors", "metrics.json"],
            facts={
                "seconds": time.monotonic() - started,
                "episodes": state["episode"],
                "workers": config.workers,
            },
        )
        self.say(f"train {target}: {state['episode']} episodes, {folder / 'model.safetensors'}")

    def repair(self) -> None:
        """Every method and seed on each target, then the evaluation."""
        for target in self.config.targets:
            repair_target(self.run, self.config, target, self.here, self.say)

    def report(self) -> None:
        """The table, the figures and the page. Raises StageError when a target is not repaired."""
        results = load_results(self.run, self.config.targets)
        page = write_report(self.run, results)
        for result in results:
            self.say(results_table(result))
            for row in result["methods"]:
                if row["method"] == "metarepair":
                    self.say(f"Repaired weights, seed {row['seed']}: {self.run.root / row['weights']}")
        self.say(f"Report: {page}")


def _begin(folder: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    """Marks an unfinished training with what it depends on; refuses to go on with another's."""
    path = folder / "begun.json"
    content = {"settings": settings, "inputs": inputs}
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else content
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). Train again with --restart.") from error
    if before != content:
        lines = "; ".join(line.removeprefix("settings.") for line in difference(before, content))
        raise StageError(
            f"{folder} holds an unfinished training with other settings: {lines}. Set them back, give this run "
            "another name, or begin anew with --restart."
        )
    write_text(path, json.dumps(content))


def _check_names(config: Config) -> None:
    """Refuses what a late stage would refuse, before the first one has cost anything."""
    for method in config.repair.methods:
        get_method(method)
    extractor = config.features.extractor
    if extractor not in SPECS and not extractor.startswith("timm:"):
        raise ConfigError(unknown_name("feature extractor", extractor, SPECS))
    distances = dict.fromkeys(config.mining.experiences, 0.0)  # which is nearest is not known yet
    for target in config.targets:
        choose_experiences(
            distances,
            choice=config.experiences.choice,
            top_k=config.experiences.top_k,
            names=config.experiences.names,
            target=target,
            category_of=category_of,
        )


def _category(name: str) -> str:
    return category_of(name.removesuffix(TARGET_SUFFIX))
