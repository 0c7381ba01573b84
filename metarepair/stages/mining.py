"""Mine the failures of the deployed DNN in every environment into the experience store.

A work item is one shard of one environment. Its failures are written as a part that is complete or absent, so a killed
run resumes with the missing shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from metarepair.stages.executor import Executor
from tasks.corruptions.draws import DRAWS_VERSION
from tasks.datasets import Split
from tasks.experiences.mining import Predict, mine, split_failures
from tasks.experiences.store import finish_environment, write_part
from tasks.records import Failures, Ints, Pixels
from tasks.storage.manifest import Manifest, as_recorded, begin, check_whole, content_hash, read_manifest
from tasks.storage.paths import Place
from tasks.storage.sealed_parts import missing_parts, seal
from tasks.storage.settings import Settings
from tasks.storage.stages import EXPERIENCE, TARGET

Role = Literal["experience", "target"]
MinedManifests = Mapping[tuple[Role, str], Manifest]
SHARD_IMAGES = "mining.shard_images"  # recorded with the settings only while the parts are unfinished


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A corruption of one split, and its folder."""

    role: Role
    corruption: str
    folder: Place

    @property
    def split(self) -> Split:
        return "train" if self.role == "experience" else "test"

    @property
    def stage(self) -> str:
        return (EXPERIENCE if self.role == "experience" else TARGET).title(self.corruption)


OnDone = Callable[[Environment, Manifest], object]


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of an environment's split; `made_of` digests settings and inputs."""

    environment: Environment
    index: int
    start: int
    stop: int
    made_of: str

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that its part is sealed with."""
        return {"stage": self.environment.stage, "rows": [self.start, self.stop], "made of": self.made_of}

    @property
    def path(self) -> Place:
        return self.environment.folder / "parts" / f"part-{self.index:05d}.arrow"


def environments(run: Run, config: Config) -> list[Environment]:
    """Experiences from the training split, then targets from the test split."""
    experiences = [
        Environment(role="experience", corruption=c, folder=run.experience(c))
        for c in config.mining.experiences
    ]
    targets = [Environment(role="target", corruption=t, folder=run.target(t)) for t in config.targets]
    return experiences + targets


def mining_settings(config: Config) -> Settings:
    """The settings that failures depend on. Batch and shard sizes are not among them."""
    return config.settings(include={"seed", "model"}) | {
        "data": config.data.settings(exclude={"root", "train", "test", "archive"}),
        "mining": config.mining.settings(exclude={"experiences", "batch_size", "shard_images"}),
        "corruption_draws": DRAWS_VERSION,
    }


def mine_all(
    run: Run,
    config: Config,
    here: Surroundings,
    executor: Executor,
    on_done: OnDone = lambda *_: None,
) -> dict[tuple[Role, str], Manifest]:
    """Mine every environment that is unfinished, and again those whose files are damaged.

    `on_done` is called with each as soon as it is complete. Raises TooFewFailuresError, StageError, DataError.
    """
    present, inputs = mining_settings(config), here.inputs()
    settings: dict[Environment, dict[str, Any]] = {}
    shards: dict[Environment, list[Shard]] = {}
    manifests: dict[Environment, Manifest] = {}
    for environment in environments(run, config):
        own = as_recorded(environment.folder, present)
        manifest = check_whole(environment.folder, stage=environment.stage, config=own, inputs=inputs)
        if manifest is not None:
            manifests[environment] = manifest
            on_done(environment, manifest)
            continue
        folder, size = environment.folder / "parts", config.mining.shard_images
        parts = as_recorded(folder, own | {SHARD_IMAGES: size})
        settings[environment] = own = {key: value for key, value in parts.items() if key != SHARD_IMAGES}
        made_of, images = content_hash([own, inputs]), len(here.split(environment.split).labels_N)
        shards[environment] = _shards(environment, images, size, made_of)
        begin(folder, config=parts, inputs=inputs, sealed=True, parts=len(shards[environment]))
    for environment in _mine_shards(config, shards, executor):
        manifest = finish_environment(
            environment.folder,
            [shard.path for shard in shards[environment]],
            partial(_sides, config=config, environment=environment),
            stage=environment.stage,
            config=settings[environment],
            inputs=inputs,
            num_classes=here.deployed.num_classes,
            class_names=here.split(environment.split).classes,
        )
        manifests[environment] = manifest
        on_done(environment, manifest)
    return {(e.role, e.corruption): manifests[e] for e in environments(run, config)}


def _mine_shards(
    config: Config, shards: Mapping[Environment, Sequence[Shard]], executor: Executor
) -> Iterator[Environment]:
    """Mine shards that are missing or do not match their seal; yield each environment once its shards are complete."""
    every = [shard for of_environment in shards.values() for shard in of_environment]
    if not every:
        return
    missing = missing_parts(every)
    left = Counter(shard.environment for shard in missing)
    yield from (environment for environment in shards if not left[environment])
    progress = Progress("mine", len(every), "shards", done=len(every) - len(missing))
    build = partial(_build_worker, config)
    for shard, failures in executor.map(build, missing):
        progress.advance(note=f"{shard.environment.corruption}: {failures} failures")
        left[shard.environment] -= 1
        if not left[shard.environment]:
            yield shard.environment


def _shards(environment: Environment, num_images: int, shard_images: int, made_of: str) -> list[Shard]:
    starts = range(0, num_images, shard_images)
    ends = [min(start + shard_images, num_images) for start in starts]
    return [Shard(environment, i, s, e, made_of) for i, (s, e) in enumerate(zip(starts, ends, strict=True))]


def _sides(failures: Failures, *, config: Config, environment: Environment) -> np.ndarray:
    return split_failures(
        failures.image_ids_N,
        failures.labels_N,
        collect=config.mining.collect,
        rule=config.mining.collect_rule,
        split_by=config.mining.split_by,
        seed=config.seed,
        environment=f"{environment.corruption} on the {environment.split} split",
    )


def _build_worker(config: Config) -> Callable[[Shard], int]:
    """Build the worker where it runs, with its own DNN and splits: it mines a shard and writes its part."""
    here = load_surroundings(config)

    def work(shard: Shard) -> int:
        environment = shard.environment
        mined = mine(
            _predictor(here),
            here.split(environment.split),
            np.arange(shard.start, shard.stop),
            corruption=environment.corruption,
            severities=config.mining.severities,
            seed=config.seed,
            batch_size=config.mining.batch_size,
            keep=config.mining.pixels,
        )
        try:
            write_part(shard.path, mined)
            seal(shard.path, shard.identity)
        except FileNotFoundError:  # another writer has completed this environment and deleted its parts
            if read_manifest(environment.folder) is None:
                raise
        return len(mined.failures)

    return work


def _predictor(here: Surroundings) -> Predict:
    def predict(images_BHWC_u8: Pixels) -> Ints:
        classes: Ints = torch.argmax(here.deployed.logits(images_BHWC_u8), dim=1).numpy()
        return classes

    return predict
