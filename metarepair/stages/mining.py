"""Mine the failures of the deployed DNN in every environment into the experience store.

A work item is one shard of one environment. Its failures are written as a part that is complete or absent, so a killed
run resumes with the missing shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from metarepair.adaptation.repair_data import split_by_parts
from metarepair.config.run import Config
from metarepair.data.learned_images import mined_rows
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.kit.kit import Kit, check_judges
from metarepair.runs.layout import Run
from metarepair.runs.progress import Progress
from metarepair.stages.executor import Executor
from metarepair.stages.images import read_user_images
from tasks.corruptions.draws import DRAWS_VERSION
from tasks.corruptions.plugins import plugin_settings
from tasks.datasets import Split
from tasks.environments import UserImages
from tasks.experiences.mining import COLLECT, Predict, mine, split_failures
from tasks.experiences.pixels import rows_of_images
from tasks.experiences.store import finish_environment, write_part
from tasks.records import Failures, Ints, Pixels
from tasks.splits import JUDGE, UNUSED
from tasks.storage.manifest import Manifest, as_recorded, begin, check_whole, content_hash, read_manifest
from tasks.storage.paths import Place
from tasks.storage.sealed_parts import missing_parts, seal
from tasks.storage.settings import Settings
from tasks.storage.stages import EXPERIENCE, TARGET

Role = Literal["experience", "target"]
ROLES: tuple[Role, ...] = ("experience", "target")
MinedManifests = Mapping[tuple[Role, str], Manifest]
SHARD_IMAGES = "mining.shard_images"  # recorded with the settings only while the parts are unfinished


@dataclass(frozen=True, kw_only=True)
class EnvironmentStage:
    """The mining of one environment in one role, and its folder."""

    role: Role
    name: str
    folder: Place

    @property
    def split(self) -> Split:
        """The split whose images a corruption is applied to."""
        return "train" if self.role == "experience" else "test"

    @property
    def stage(self) -> str:
        return (EXPERIENCE if self.role == "experience" else TARGET).title(self.name)


OnDone = Callable[[EnvironmentStage, Manifest], object]


@dataclass(frozen=True)
class Shard:
    """Places `start` to `stop` among the rows to mine; `made_of` digests settings and inputs."""

    environment: EnvironmentStage
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


def environments(run: Run, config: Config, roles: Collection[Role] = ROLES) -> list[EnvironmentStage]:
    """Experiences, then targets. Corruptions are mined from the training and from the test split."""
    experiences = [
        EnvironmentStage(role="experience", name=name, folder=run.experience(name))
        for name in config.mining.experiences
    ]
    targets = [EnvironmentStage(role="target", name=name, folder=run.target(name)) for name in config.targets]
    return [one for one in experiences + targets if one.role in roles]


def mining_settings(config: Config, environment: EnvironmentStage) -> Settings:
    """The settings that an environment's failures depend on. Batch and shard sizes are not among them."""
    given = config.environments.get(environment.name)
    unused = {"experiences", "batch_size", "shard_images"}
    if environment.role == "experience" and (given is None or given.kind != "archive"):
        unused |= {"judge_fraction"}
    if config.has_own_images(environment.name):
        unused |= {"judge_fraction", "severities", "images"}
    if environment.role == "target":
        unused |= {"images"}
    mining = config.mining.settings(exclude=unused)
    # Runs of older versions set no images aside.
    mining.defaults |= {"judge_fraction": None} if "judge_fraction" in mining else {}
    settings = config.settings(include={"seed", "model"}) | {
        "data": config.data.settings(exclude={"root", "train", "test", "archive"}),
        "mining": mining,
        "corruption_draws": DRAWS_VERSION,
    }
    settings |= plugin_settings(config.corruptions_of([environment.name]))
    return settings if given is None else settings | {"environment": {"corruption": given.corruption}}


def mining_inputs(here: Surroundings, environment: EnvironmentStage) -> dict[str, str]:
    """Digests of what an environment's failures depend on: the DNN, the data set, and its own images."""
    return here.inputs() | here.inputs_of(environment.name)


def mine_all(
    run: Run,
    config: Config,
    here: Surroundings,
    executor: Executor,
    on_done: OnDone = lambda *_: None,
    roles: Collection[Role] = ROLES,
    *,
    kit: Kit | None,
) -> dict[tuple[Role, str], Manifest]:
    """Mine every environment of these roles that is unfinished, and again those whose files are damaged.

    `on_done` is called with each as soon as it is complete. kit: that of the run, which must not have learned from
    images that judge. Raises TooFewFailuresError, StageError, DataError.
    """
    read_user_images(run, config, here)
    if kit is not None:
        check_judges(kit, [here.environment("test", target) for target in config.targets])
    settings: dict[EnvironmentStage, dict[str, Any]] = {}
    shards: dict[EnvironmentStage, list[Shard]] = {}
    manifests: dict[EnvironmentStage, Manifest] = {}
    for environment in environments(run, config, roles):
        inputs = mining_inputs(here, environment)
        own = as_recorded(environment.folder, mining_settings(config, environment))
        manifest = check_whole(environment.folder, stage=environment.stage, config=own, inputs=inputs)
        if manifest is not None:
            manifests[environment] = manifest
            on_done(environment, manifest)
            continue
        folder, size = environment.folder / "parts", config.mining.shard_images
        parts = as_recorded(folder, own | {SHARD_IMAGES: size})
        settings[environment] = own = {key: value for key, value in parts.items() if key != SHARD_IMAGES}
        made_of, images = content_hash([own, inputs]), len(_rows_to_mine(here, environment))
        shards[environment] = _shards(environment, images, size, made_of)
        begin(folder, config=parts, inputs=inputs, sealed=True, parts=len(shards[environment]))
    for environment in _mine_shards(config, shards, executor):
        manifest = finish_environment(
            environment.folder,
            [shard.path for shard in shards[environment]],
            partial(_sides, config=config, here=here, environment=environment),
            stage=environment.stage,
            config=settings[environment],
            inputs=mining_inputs(here, environment),
            num_classes=here.deployed.num_classes,
            class_names=here.split("test").classes,
        )
        manifests[environment] = manifest
        on_done(environment, manifest)
    return {(e.role, e.name): manifests[e] for e in environments(run, config, roles)}


def _rows_to_mine(here: Surroundings, environment: EnvironmentStage) -> Ints:
    """The rows of the images that are read: of an experience, those to learn from; of a target, all that are used."""
    if environment.role == "experience":
        return mined_rows(here, environment.name)
    return np.flatnonzero(here.environment(environment.split, environment.name).parts_N != UNUSED)


def _mine_shards(
    config: Config, shards: Mapping[EnvironmentStage, Sequence[Shard]], executor: Executor
) -> Iterator[EnvironmentStage]:
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
        progress.advance(note=f"{shard.environment.name}: {failures} failures")
        left[shard.environment] -= 1
        if not left[shard.environment]:
            yield shard.environment


def _shards(environment: EnvironmentStage, num_images: int, shard_images: int, made_of: str) -> list[Shard]:
    starts = range(0, num_images, shard_images)
    ends = [min(start + shard_images, num_images) for start in starts]
    return [Shard(environment, i, s, e, made_of) for i, (s, e) in enumerate(zip(starts, ends, strict=True))]


def _sides(
    failures: Failures, *, config: Config, here: Surroundings, environment: EnvironmentStage
) -> np.ndarray:
    source = here.environment(environment.split, environment.name)
    rows_N = rows_of_images(source.image_ids_N, failures.image_ids_N)
    judges_N = source.parts_N[rows_N] == JUDGE
    set_aside = environment.role == "target" and bool((source.parts_N == JUDGE).any())
    users = isinstance(source, UserImages)
    split = "" if users else f" on the {environment.split} split"
    sides_N = split_failures(
        source.groups_N[rows_N],
        failures.labels_N,
        collect=config.mining.collect,
        rule=config.mining.collect_rule,
        split_by=config.mining.split_by,
        seed=config.seed,
        environment=f"{environment.name}{split}",
        judges_N=judges_N if set_aside else None,
        at_most=users or config.mining.at_most,
    )
    if users and set_aside:
        split_by_parts(failures.image_ids_N[sides_N == COLLECT], source)  # a repair needs both parts
    return sides_N


def _build_worker(config: Config) -> Callable[[Shard], int]:
    """Build the worker where it runs, with its own DNN and splits: it mines a shard and writes its part."""
    here = load_surroundings(config)

    def work(shard: Shard) -> int:
        environment = shard.environment
        mined = mine(
            _predictor(here),
            here.environment(environment.split, environment.name),
            _rows_to_mine(here, environment)[shard.start : shard.stop],
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
