"""Run the stages of a run from its configuration. Each stage can be run alone and resumed.

mine -> score (features, distances, confidence) -> train -> repair (and evaluate) -> report

`tasks.storage.stages` has the table of all stages. The executor runs their pieces. If it has room, independent pieces
run concurrently: features of environments already mined while others are mined, and targets, for each of which θ_meta
is trained and then repaired.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Literal

import torch

from metarepair.config.run import SHARED, Config
from metarepair.data.selecting_images import check_classes
from metarepair.data.workspace import Surroundings, load_surroundings, pick_device
from metarepair.evaluation.judging import readings
from metarepair.features.confidence_tables import read_confidence
from metarepair.features.extractors import check_extractor
from metarepair.kit.kit import Kit, check_clean_judges, check_deployed, check_targets, fitting, kit_of
from metarepair.meta_training.meta_train import is_trained, training_settings
from metarepair.methods import check_method_settings, check_steps, get_method
from metarepair.models.build import read_tensors, state_hash
from metarepair.models.clean_check import check_on_clean
from metarepair.models.wrappers import copied
from metarepair.probing.needs import IMAGES as PROBED
from metarepair.probing.needs import probe_run
from metarepair.repairs.export import require_packages
from metarepair.repairs.merged import merge_weights
from metarepair.repairs.stage import repair_target
from metarepair.reports import load_results
from metarepair.reports.card import write_cards
from metarepair.reports.html import write_report
from metarepair.reports.side_effects import Images
from metarepair.reports.table import figures_of, results_table
from metarepair.runs.checkpoint import newest_checkpoint, read_state
from metarepair.runs.context import episodes_after
from metarepair.runs.layout import RATES, START, Run, open_run, run_at, run_of
from metarepair.runs.logs import RESULTS
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.stages.executor import ExecutorOf, in_process
from metarepair.stages.features import extract_all, load_extractor
from metarepair.stages.images import check_user_images
from metarepair.stages.joint import joint_inputs, joint_settings, keep_joint
from metarepair.stages.merged import repair_experiences
from metarepair.stages.mining import (
    ROLES,
    EnvironmentStage,
    MinedManifests,
    OnDone,
    Role,
    environments,
    mine_all,
    mining_inputs,
    mining_settings,
)
from metarepair.stages.pretrain import epochs_after
from metarepair.stages.score import score_stage, stale_features
from metarepair.stages.together import Follower, each_at_once
from metarepair.stages.train import confidence_in, put_start
from metarepair.trackers.tracking import Tracking, training_subject
from metarepair.weights import start_file
from tasks.datasets import dataset_info
from tasks.environments import category_of
from tasks.errors import ConfigError, DataError
from tasks.sampling.confidence import choose_experiences
from tasks.storage.manifest import (
    MANIFEST,
    Manifest,
    check_done,
    discard,
    read_manifest,
    require_manifest,
    verify_checksums,
)
from tasks.storage.paths import Place, copy_file, find, remove_tree, write_text
from tasks.storage.remote import RemotePath
from tasks.storage.stages import FEATURES, JOINT, MERGED, META, SCORE, TARGET, stages_of

logger = logging.getLogger(__name__)
Verb = Literal["mine", "score", "train", "repair", "report"]
VERBS: tuple[Verb, ...] = ("mine", "score", "train", "repair", "report")


class Pipeline:
    """The stages of one run. A stage already complete with the same settings is skipped, with a log line.

    report_to: a folder for the report; then nothing is written in the run, and only `report` may be called.
    show_images: whether the report may hold images and paths.
    after: an earlier pipeline. Of the same DNN, data and kit, nothing is loaded, checked and noted again.
    """

    def __init__(
        self,
        config: Config,
        executor: ExecutorOf = in_process,
        *,
        report_to: Place | None = None,
        show_images: bool = True,
        after: Pipeline | None = None,
    ) -> None:
        self._show_images = show_images
        self.config, self._checked, self._probed = config, False, False
        if after is not None and _deploys(after.config) == _deploys(config):
            self.kit, self.here = after.kit, after.here.with_settings(config)
            self._checked = after._checked
        self.executor = executor(config)
        self._judging = threading.Lock()
        _check_names(config)
        if self.kit is not None:
            check_targets(self.kit, config)
        self.run: Run = (
            open_run(config)
            if report_to is None
            else run_at(run_of(config).root, config, report_to=report_to)
        )
        tracked = config if report_to is None else config.model_copy(update={"trackers": ()})
        self.tracking = Tracking(tracked, self.run.root)

    @cached_property
    def kit(self) -> Kit | None:
        """The repair kit, verified; None if the settings name none."""
        return kit_of(self.config)

    @cached_property
    def here(self) -> Surroundings:
        with fitting(self.kit, self.config):
            surroundings = load_surroundings(self.config, device=self.device, notes=True)
        for note in surroundings.deployed.notes:
            logger.info(note)
        if self.kit is not None:
            check_deployed(self.kit, surroundings)
            check_clean_judges(self.kit, surroundings)
        return surroundings

    def check_clean(self) -> None:
        """Test the deployed DNN once on some clean test images. Raises WeightsError if it is near chance on them.

        Raises ConfigError first if the limits protect a class that does not exist.
        """
        check_protected(self.config)
        if self._checked:
            return
        self._checked = True
        check = check_on_clean(self.here.deployed, self.here.split("test"))
        logger.info(f"{self.here.deployed.name}: {check.words('clean test images')}")

    def probe(self, methods: Sequence[str], *, trains: bool) -> None:
        """Check once that the engine's gradients of the deployed DNN are right. Raises ConfigError if not."""
        if self._probed:
            return
        self._probed = True
        images = self.here.split("test").images(slice(0, PROBED))
        probed = probe_run(
            [get_method(name) for name in methods], self.here.deployed, images, self.config, trains=trains
        )
        if probed is not None:
            logger.info(probed.words)

    def check_start(self) -> None:
        """Raise WeightsError if `train.start` names a file that is not of the deployed DNN."""
        put_start(copied(self.here.deployed.module), self.config.train.start, self.here.deployed.name)

    def _done(self, place: Callable[[str], Place], names: Sequence[str]) -> bool:
        """Whether the folders of all these targets, or trainings, are complete."""
        return all((place(name) / MANIFEST).is_file() for name in names)

    @property
    def device(self) -> torch.device:
        """The driver's device. With workers, the driver needs no GPU of its own."""
        if self.config.workers > 0 and not torch.cuda.is_available():
            return torch.device("cpu")
        return pick_device(self.config.device)

    def restart(self, stage: Verb) -> None:
        """Delete a stage and those after it, but only after everything that the stage needs could be read.

        Of the stages with a folder per target, only those of the configured targets are deleted.
        """
        if stage != "report":
            self.here.inputs()
        if stage == "mine":
            check_user_images(self.config, self.here)
            self.check_clean()
        if stage in ("mine", "score", "train"):
            self.check_start()
        roles = ROLES if stage in ("score", "train") else self.roles
        mined = self.mined(roles) if VERBS.index(stage) > VERBS.index("mine") else {}
        if stage == "score":
            load_extractor(self.config, self.here)
        if stage == "train":
            for target in self.config.targets:
                read_confidence(self.run, target)
        if stage == "repair" and self.meta_trains:
            for training in self.config.trainings:
                require_manifest(self.run.meta(training), META.remedy)
        for verb in VERBS[VERBS.index(stage) :]:
            for folder in self._folders(verb, stage, mined):
                for done in find(folder, MANIFEST, deep=True):
                    discard(done.parent)
                remove_tree(folder)

    def _folders(self, verb: Verb, restarted: Verb, mined: MinedManifests) -> list[Place]:
        """The folders of a verb that are deleted when the stages from `restarted` on start over."""
        if verb == "report":
            return [self.run.report]
        folders = []
        for stage in stages_of(verb):
            folder = self.run.root / stage.group
            if stage in (JOINT, MERGED):
                scored = stage is JOINT and self.config.joint.draw == "confidence"
                again = restarted in ("mine", "train") or (restarted == "score" and scored)
                folders += [folder] if again else []
            elif stage is FEATURES and restarted == "score":
                # Features do not depend on α, β or the experiences, so they need not be made again.
                folders += stale_features(self.run, self.config, mined)
            elif restarted in ("train", "repair"):
                names = self.config.trainings if stage is META else self.config.targets
                folders += [folder / name for name in names]
            else:
                folders.append(folder)
        return folders

    @property
    def meta_trains(self) -> bool:
        """Whether a method of `repair.methods` starts from θ_meta."""
        return any("experiences" in get_method(name).uses for name in self.config.repair.methods)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of the environments whose failures are needed: experiences only if they are learned from."""
        methods = self.config.repair.methods
        merges = any("merged" in get_method(name).uses for name in methods)
        drawn = self.config.joint.draw == "confidence" and self.needs_joint(methods)
        return ROLES if self.meta_trains or merges or drawn else ("target",)

    def mined(self, roles: Collection[Role] = ROLES) -> dict[tuple[Role, str], Manifest]:
        """Manifests of all environments of these roles, mined with exactly these settings, data and DNN.

        Raises StageError if one is not mined so.
        """
        manifests: dict[tuple[Role, str], Manifest] = {}
        for environment in environments(self.run, self.config, roles):
            folder, settings = environment.folder, mining_settings(self.config, environment)
            inputs = mining_inputs(self.here, environment)
            manifest = check_done(folder, stage=environment.stage, config=settings, inputs=inputs)
            manifests[environment.role, environment.name] = manifest or require_manifest(
                folder, TARGET.remedy
            )
        return manifests

    def whole(self) -> None:
        """Run all stages. Experiences are mined and θ_meta is trained only if `repair.methods` need them."""
        _require_targets(self.config)
        with self.tracking:
            self._whole()

    def _whole(self) -> None:
        methods, meta_trains, scores = self.config.repair.methods, self.meta_trains, self.roles == ROLES
        trains = meta_trains and not self._done(self.run.meta, self.config.trainings)
        if trains:
            self.check_start()
        if not self._done(self.run.repaired, self.config.targets):
            self.probe(methods, trains=trains)
        with self._features_meanwhile(scores=scores) as on_done:
            self._mine(on_done, self.roles)
        if scores:
            self.score()
        mined = self.mined(self.roles)
        self.before_targets(methods)

        if self.config.one_for_all and meta_trains:
            self._train(SHARED)

        def learn(target: str) -> None:
            if meta_trains and not self.config.one_for_all:
                self._train(target)
            self._repair(target, mined)

        self._each_target(learn)
        self.report()

    @contextmanager
    def _features_meanwhile(self, *, scores: bool) -> Iterator[OnDone]:
        """Extract features of each environment once it is mined, if there is room for as many workers again."""
        if not scores or self.executor.trainings_at_once < 2:
            yield lambda *_: None
            return

        def extract(batch: Sequence[tuple[EnvironmentStage, Manifest]]) -> None:
            mined = {(environment.role, environment.name): manifest for environment, manifest in batch}
            extract_all(self.run, self.config, mined, self.executor)

        follower = Follower(extract)
        try:
            yield lambda environment, manifest: follower.add((environment, manifest))
        except BaseException:
            follower.abandon()
            raise
        follower.finish()

    def mine(self) -> None:
        """Mine experiences and targets."""
        self._mine(lambda *_: None)

    def _mine(self, on_done: OnDone, roles: Collection[Role] = ROLES) -> None:
        folders = [environment.folder for environment in environments(self.run, self.config, roles)]
        check_protected(self.config)
        if not all((folder / MANIFEST).is_file() for folder in folders):
            self.check_clean()  # before hours of mining failures that only wrong preprocessing causes
        mined = mine_all(self.run, self.config, self.here, self.executor, on_done, roles, kit=self.kit)
        for (role, name), manifest in mined.items():
            examined = sum(manifest.facts["examined"].values())
            right = sum(manifest.facts["correct"].values())
            rows = manifest.rows
            missing = [self.here.split("test").classes[i] for i in manifest.facts["classes_without_failures"]]
            note = f"; no failures collected for {', '.join(missing)}" if missing else ""
            logger.info(
                f"{role:10s} {name:18s} accuracy {right / examined:6.1%} of {examined}, "
                f"{rows['collect']} collected, {rows['fail']} left to D_fail{note}"
            )

    def score(self) -> None:
        """Compute features of all environments, distances of all pairs, confidence of each target's experiences."""
        score_stage(self.run, self.config, self.mined(), self.executor, kit=self.kit)

    def joint(self) -> None:
        """Train jointly on clean images and experiences, once for all targets. A kit has done so already."""
        config, run = self.config, self.run
        if self.kit is not None:
            logger.info(f"joint training: that of the kit {self.kit.folder}")
            return

        settings = joint_settings(config)
        subject = training_subject(config, JOINT.title(), run.joint, settings, group="joint")

        def make() -> StageOutput:
            with self.tracking.following(subject, partial(epochs_after, run.joint)):
                self.executor.train_jointly(run, self.device)
            return keep_joint(run, config, self.here)

        run_stage(JOINT, run.joint, make, config=settings, inputs=joint_inputs(run, config, self.here))

    def merged(self) -> None:
        """Repair for each experience that is no target, for the methods that start from an average of these repairs."""
        self.mined()
        repair_experiences(self.run, self.config, self.here, self.executor)

    def before_targets(self, methods: Sequence[str]) -> None:
        """Make what these methods start from and what serves all targets: joint training, repairs of experiences."""
        merges = any("merged" in get_method(name).uses for name in methods)
        for target in self.config.targets if merges else ():
            merge_weights(self.run, self.config, target)  # refuse an empty average before anything is made
        if self.needs_joint(methods):
            self.joint()
        if merges:
            self.merged()

    def needs_joint(self, methods: Sequence[str]) -> bool:
        """Whether one of these methods starts from joint training, or from a θ_meta that does."""
        used = {what for name in methods for what in get_method(name).uses}
        return "joint" in used or ("experiences" in used and self.config.train.start == "joint")

    def train(self) -> None:
        """Train θ_meta for each target; before that, make what serves all targets, if something starts from it."""
        with self.tracking:
            self.check_start()
            self.before_targets((*self.config.repair.methods, "metarepair"))
            self.meta_train()

    def meta_train(self) -> None:
        """Train θ_meta for each target, or for all."""
        if not self._done(self.run.meta, self.config.trainings):
            self.mined()  # report what is missing before the DNN is probed
            self.probe((), trains=True)
        each_at_once(self._train, self.config.trainings, at_once=self.executor.trainings_at_once)

    def _each_target(self, work: Callable[[str], object]) -> None:
        """Call `work` for every target, for as many at once as the cluster has room for."""
        each_at_once(work, self.config.targets, at_once=self.executor.trainings_at_once)

    def _train(self, target: str) -> None:
        """Train θ_meta for a target, or for all (`shared`). A kit has done that for all."""
        run, config, folder = self.run, self.config, self.run.meta(target)
        if self.kit is not None and target == SHARED:
            logger.info(f"θ_meta: that of the kit {self.kit.folder}")
            return
        mined = self.mined()
        verify_checksums(run.score, require_manifest(run.score, SCORE.remedy))
        confidence = confidence_in(run, config, target)
        settings = training_settings(config)
        if self.kit is None:
            inputs = {f"experience {name}": mined["experience", name].digest for name in confidence.names}
        else:
            inputs = {"kit": self.kit.manifest.digest}
        inputs |= {"confidence": confidence.digest, **self.here.inputs()}
        if target != SHARED:
            inputs["target"] = mined["target", target].digest
        if self.kit is None and config.train.start == "joint":
            inputs["joint"] = require_manifest(run.joint, JOINT.remedy).digest
        elif (start := start_file(config.train.start)) is not None:
            inputs["start"] = state_hash(read_tensors(start))

        subject = training_subject(config, META.title(target), folder, settings, group="meta-training")

        def make() -> StageOutput:
            with self.tracking.following(subject, partial(episodes_after, folder)):
                self.executor.train(run, target, self.device)
            return self._trained(target, folder)

        run_stage(META, folder, make, names=[target], config=settings, inputs=inputs)

    def _trained(self, target: str, folder: Place) -> StageOutput:
        """Copy the tensors of the last checkpoint to where θ_meta is read."""
        checkpoint = newest_checkpoint(folder, level=logging.DEBUG)
        state = read_state(checkpoint) if checkpoint is not None else None
        spent = {} if state is None else state.get("cost", {})
        if (
            checkpoint is None
            or state is None
            or not is_trained(self.config, state["episode"], spent.get("core_seconds", 0.0))
        ):
            raise DataError(
                f"{folder} has no complete checkpoint of the last episode. Run the command again."
            )
        copy_file(checkpoint / "model.safetensors", folder / START)
        tensors = [START]
        if self.config.inner.learned_rates:
            copy_file(checkpoint / RATES, folder / RATES)
            tensors.append(RATES)
        write_text(folder / "metrics.json", json.dumps(state["history"]))
        logger.info(f"train {target}: {state['episode']} episodes, {folder / START}")
        return StageOutput(
            files=[*tensors, "metrics.json"],
            facts={
                "seconds": state["seconds"],
                **spent,
                "episodes": state["episode"],
                "workers": self.config.workers,
                "skipped_episodes": state["skipped"],
                "memory": state["memory"],
            },
        )

    def repair(self) -> None:
        """Repair for each target by every method with every seed, then evaluate."""
        mined = self.mined(self.roles)
        if not self._done(self.run.repaired, self.config.targets):
            self.probe(self.config.repair.methods, trains=False)
        self._each_target(lambda target: self._repair(target, mined))

    def _repair(self, target: str, mined: MinedManifests) -> None:
        verify_checksums(self.run.target(target), mined["target", target])
        # An object store cannot append: if two D_fail were opened at once, one of the two log entries would be lost.
        with self._judging if isinstance(self.run.root, RemotePath) else nullcontext():
            self.executor.call(repair_target, self.run, target, self.here)

    def report(self) -> None:
        """Write the report and the models' cards. Raises StageError if a target is not repaired."""
        with self.tracking:
            self._report()

    def _report(self) -> None:
        for target in self.config.targets:
            for folder in (self.run.repaired(target), self.run.meta(self.config.training_for(target))):
                manifest = read_manifest(folder)
                if manifest is not None:
                    verify_checksums(folder, manifest)
        results = load_results(self.run, self.config.targets)
        if self.run.report_to is None:
            for result in results:
                write_cards(self.run, result)
        page = write_report(
            self.run,
            results,
            Images(
                environment=lambda target: self.here.environment("test", target),
                clean=lambda: self.here.split("test"),
            ),
            show_images=self._show_images,
        )
        self.tracking.figures({k: v for result in results for k, v in figures_of(result).items()})
        for result in results:
            logger.log(RESULTS, results_table(result))
            for line in readings(self.run, result["target"]):
                logger.log(RESULTS, line)
            shown = result["choice"]["method"] if "choice" in result else "metarepair"
            for row in result["methods"]:
                if row["method"] == shown != "none":
                    weights = self.run.root / row["weights"]
                    logger.log(RESULTS, f"Repaired weights, seed {row['seed']}: {weights}")
        logger.log(RESULTS, f"Report: {page}")


def _deploys(config: Config) -> tuple[object, ...]:
    return config.model, config.data, config.kit


def check_protected(config: Config) -> None:
    """Raise ConfigError if the limits protect a class that the data set does not have."""
    if config.limits.protected_classes:
        check_classes(config.limits.protected_classes, dataset_info(config.data.source()).classes)


def _require_targets(config: Config) -> None:
    """Raise ConfigError if there is nothing to repair for, as in the settings of a kit."""
    if not config.targets:
        raise ConfigError("targets=[]: it must have 1 or more entries; only `metarepair kit` needs none")


def _check_names(config: Config) -> None:
    """Raise now what a late stage would raise, before the first stage has cost anything."""
    for method in config.repair.methods:
        get_method(method)
    check_method_settings(config)
    check_steps(config, config.repair.methods)
    averaging = [method for method in config.repair.methods if "merged" in get_method(method).uses]
    if averaging and config.kit is not None:
        raise ConfigError(
            f"{averaging[0]} averages repairs of single experiences, and a kit has none. Leave it out, or leave out "
            "the kit."
        )
    for kind in config.repair.export or ():
        require_packages(kind)
    check_extractor(config.features.extractor, config.features.weights)
    distances = dict.fromkeys(config.mining.experiences, 0.0)  # the distances are not known yet
    for target in config.targets if config.kit is None else ():
        choose_experiences(
            distances,
            choice=config.experiences.choice,
            top_k=config.experiences.top_k,
            names=config.experiences.names,
            target=target,
            category_of=category_of,
        )
