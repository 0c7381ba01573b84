"""Make a repair kit: a run without targets, whose results are then packed.

mine (experiences) -> score (features, distances) -> joint training -> θ_meta for all -> pack

Everything is a stage of the run in the kit's folder, so a kit that was cut short resumes.
"""

from __future__ import annotations

import json
import logging

import numpy as np

from metarepair.config.kit import (
    DIGESTS,
    FILE,
    TEST,
    TRAIN,
    VERSION,
    WEIGHTS,
    KitExperience,
    KitFile,
    check_kit_settings,
)
from metarepair.config.run import SHARED, Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.save_images import save_images
from metarepair.data.workspace import Surroundings
from metarepair.features.extractors import weights_digest
from metarepair.features.files import read_moments, write_moments
from metarepair.kit.kit import DISTANCES, MOMENTS, Kit, open_kit
from metarepair.models.build import save_weights, state_hash
from metarepair.runs.logs import RESULTS
from metarepair.runs.run_stage import StageOutput, run_stage
from metarepair.stages.distances import all_distances
from metarepair.stages.features import MOMENTS as MOMENTS_FILE
from metarepair.stages.features import feature_folder
from metarepair.stages.mining import environments
from metarepair.stages.pipeline import Pipeline
from tasks.datasets import ArrayDataset
from tasks.environments import CorruptedImages, UserImages, category_of
from tasks.errors import DataError
from tasks.keys import keyed_generator
from tasks.splits import LEARN
from tasks.splits.digests import Digests, pixel_digests
from tasks.storage.manifest import MANIFEST, discard, read_manifest, require_manifest, versions
from tasks.storage.paths import Place, find, remove_tree, size_of, write_text, writing
from tasks.storage.settings import Settings
from tasks.storage.stages import EXPERIENCE, FEATURES, JOINT, KIT, META, SCORE, Stage

logger = logging.getLogger(__name__)
CLEAN_IMAGES = 1000  # of each of the two halves that a kit holds


class KitWork:
    """The making of one kit. What is complete with the same settings is skipped.

    images: whether the kit holds clean images. failures: whether it holds the failures of its experiences and all that
    was made on the way.
    """

    def __init__(self, pipeline: Pipeline, *, images: bool = True, failures: bool = True) -> None:
        check_kit_settings(pipeline.config)
        self.pipeline, self.config, self.run = pipeline, pipeline.config, pipeline.run
        self.images, self.failures = images, failures and images

    def make(self) -> Kit:
        """Run all stages, pack their results, and delete what the kit is not to hold; return the kit."""
        if read_manifest(self.run.pack) is None:
            with self.pipeline.tracking:
                self._stages()
        run_stage(KIT, self.run.pack, self._pack, config=self._settings(), inputs=self._inputs())
        if not self.failures:
            self._leave_out()
        kit = open_kit(self.run.root)
        logger.log(RESULTS, describe(kit))
        return kit

    def restart(self) -> None:
        """Delete everything, but only after the DNN and the data could be read."""
        self.pipeline.restart("mine")
        discard(self.run.pack)

    def _stages(self) -> None:
        """Mine, score and train; a stage that was packed and then left out cannot be asked for again."""
        pipeline = self.pipeline
        if not (self.run.meta(SHARED) / MANIFEST).is_file():
            pipeline.probe((), trains=True)
            pipeline.check_start()
        pipeline.mine()
        pipeline.score()
        if self.config.train.start == "joint":
            pipeline.joint()
        pipeline.meta_train()

    def _settings(self) -> Settings:
        settings = self.config.settings(include={"seed", "model"})
        data = self.config.data.settings(exclude={"root", "train", "test", "archive"})
        return settings | {"data": data, "images": self.images, "failures": self.failures}

    def _inputs(self) -> dict[str, str]:
        """Digests of the DNN, the data and the stages that are packed. Those left out are known by their pack."""
        run, packed = self.run, read_manifest(self.run.pack)
        inputs = dict(self.pipeline.here.inputs())
        trained = {
            stage.kind: require_manifest(folder, stage.remedy).digest for stage, folder in self._trained()
        }
        if packed is not None:
            held = {
                key: digest for key, digest in packed.inputs.items() if key.partition(" ")[0] == FEATURES.name
            }
            return inputs | trained | held
        for one in environments(run, self.config):
            manifest = require_manifest(feature_folder(run, one), SCORE.remedy)
            inputs[f"{FEATURES.name} {one.name}"] = manifest.digest
        return inputs | trained

    def _trained(self) -> list[tuple[Stage, Place]]:
        return [(JOINT, self.run.joint), (META, self.run.meta(SHARED))]

    def _pack(self) -> StageOutput:
        """Write the files of the pack."""
        pack, here = self.run.pack, self.pipeline.here
        every = environments(self.run, self.config)
        moments = [feature_folder(self.run, one) / MOMENTS_FILE for one in every]
        for one, path in zip(every, moments, strict=True):
            write_moments(pack / MOMENTS / f"{one.name}.npy", read_moments(path), short=True)
        learned_N = learned_digests(here, self.config)
        _save_array(pack / DIGESTS, learned_N)
        _save_array(pack / DISTANCES, all_distances(moments, self.pipeline.executor))
        save_weights(pack / WEIGHTS, here.deployed.module.state_dict(), {"model": self.config.model.name})
        halves = clean_halves(here, learned_N, self.config.seed) if self.images else {}
        for half, images in halves.items():
            _save_images(images, pack / half)
        counts = tuple(len(images) for images in halves.values())
        file = self._file([read_moments(path).count for path in moments], len(learned_N), counts)
        write_text(pack / FILE, json.dumps(file.model_dump(mode="json"), indent=1) + "\n")
        names = [f"{MOMENTS}/{one.name}.npy" for one in every]
        return StageOutput(
            files=[FILE, WEIGHTS, DIGESTS, DISTANCES, *names, *halves], rows={"learned": len(learned_N)}
        )

    def _file(self, failures: list[int], learned: int, clean: tuple[int, ...]) -> KitFile:
        config, deployed, test = self.config, self.pipeline.here.deployed, self.pipeline.here.split("test")
        held = self.failures and config.mining.pixels == "stored"
        named = config.model.model_copy(
            update={"mean": deployed.mean, "std": deployed.std, "weights": WEIGHTS, "entry": None}
        )
        experiences = [
            KitExperience(name=name, category=category_of(name), failures=count)
            for name, count in zip(config.mining.experiences, failures, strict=True)
        ]
        return KitFile(
            version=VERSION,
            made_by=versions().get("metarepair", "unknown"),
            deployed=state_hash(deployed.module.state_dict()),
            model=named,
            classes=test.classes,
            image_size=test.image_shape[:2],
            corruption_table=config.data.corruption_table,
            experiences=tuple(experiences),
            extractor=config.features.extractor,
            extractor_digest=weights_digest(config.features.extractor, config.features.weights),
            inner=config.inner,
            task=config.task,
            learned=learned,
            clean=(clean[0], clean[1]) if clean else None,
            failures=held,
        )

    def _leave_out(self) -> None:
        """Delete what only making the kit needed, each manifest first. Without it, the kit is small."""
        root = self.run.root
        for stage in (EXPERIENCE, FEATURES, SCORE):
            for done in find(root / stage.group, MANIFEST, deep=True):
                discard(done.parent)
            remove_tree(root / stage.group)
        remove_tree(self.run.environments)
        for stage, folder in self._trained():
            held = require_manifest(folder, stage.remedy).files
            for path in find(folder, "*", deep=True):
                if path.name != MANIFEST and path.name not in held and size_of(path) is not None:
                    path.unlink(missing_ok=True)
            remove_tree(folder / "checkpoints")


def learned_digests(here: Surroundings, config: Config) -> Digests:
    """The sorted pixel digests of all images that were learned from or selected by: clean ones, and the user's own.

    Clean images that were held out are among them: training was selected by them, so they must not judge.
    """
    learned, selecting = here.split("train").images_NHWC, here.clean().held_out.images_NHWC
    found = [pixel_digests(learned), pixel_digests(selecting[:])]
    for name in config.mining.experiences:
        source = here.environment("train", name)
        if isinstance(source, UserImages):
            found.append(source.digests_N[source.learned_N])
        elif isinstance(source, CorruptedImages) and source.data.split == "test":  # of an archive
            found.append(pixel_digests(here.split("test").images(np.flatnonzero(source.parts_N == LEARN))))
    return np.unique(np.concatenate(found))


def clean_halves(here: Surroundings, learned_N: Digests, seed: int) -> dict[str, CleanImages]:
    """Clean images that were learned from, and unseen ones of the test split, at most CLEAN_IMAGES each, by file."""
    test: ArrayDataset = here.split("test")
    generator = keyed_generator("kit-clean", seed)
    whole = CleanImages(images_NHWC=test.images_NHWC, labels_N=test.labels_N)
    unseen = np.flatnonzero(~np.isin(pixel_digests(test.images_NHWC), learned_N))
    if not len(unseen):
        raise DataError(
            "every image of the test split was also learned from or selected by. Give a test split of others."
        )
    rows = np.sort(generator.permutation(unseen)[:CLEAN_IMAGES])
    return {TRAIN: here.clean().sample(CLEAN_IMAGES, generator), TEST: whole.take(rows)}


def _save_images(images: CleanImages, path: Place) -> None:
    """Write images as PNG in a Parquet file, with labels as numbers."""
    with writing(path) as part:
        filled = part.with_suffix(".parquet")
        save_images((images.images_NHWC[:], images.labels_N), filled, compress_level=9)
        filled.replace(part)


def _save_array(path: Place, array: np.ndarray) -> None:
    with writing(path) as part, part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def describe(kit: Kit) -> str:
    """What a kit holds and how large it is, for a person."""
    file = kit.file
    sizes = [
        size for folder in (kit.run.pack, kit.run.joint, kit.run.meta(SHARED)) for size in _sizes(folder)
    ]
    clean = "no clean images" if file.clean is None else f"{sum(file.clean):,} clean images"
    failures = "with its failures (for refine)" if file.failures else "without failures"
    return (
        f"Repair kit of {file.model.name}: {len(file.experiences)} experiences {failures}, {clean}, learned from "
        f"{file.learned:,} images; {sum(sizes) / 1e6:.1f} MB without failures. To use it: fix --kit {kit.folder}"
    )


def _sizes(folder: Place) -> list[int]:
    return [size for size, _ in require_manifest(folder, KIT.remedy).files.values()]
