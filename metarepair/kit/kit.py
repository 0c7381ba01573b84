"""Open a repair kit, verify it, and check that it is one for the DNN, the data and the targets of a run.

<kit>/pack/kit.json                what the kit is for and how it was made (`metarepair.config.kit.KitFile`)
           deployed.safetensors    the deployed weights
           digests.npy             uint64 [N], sorted pixel digests of all images that the kit learned from or
                                   selected by
           distances.npy           float64 [E, E], of all pairs of experiences
           moments/<name>.npy      features of each experience, as moments
           clean/train.parquet     clean images that the kit learned from
           clean/test.parquet      clean images of the test split, from which it did not learn
           manifest.json           written last
<kit>/joint/, meta/shared/         joint training and θ_meta, stages as in any run
<kit>/experiences/, features/ …    the run that the kit was made in; not there without failures
"""

# N images, E experiences, D features

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarepair.config.kit import DIGESTS, MAKE_AGAIN, PYTHON, WEIGHTS, KitFile, check_classes
from metarepair.config.run import SHARED, Config
from metarepair.data.workspace import Surroundings
from metarepair.models.build import DeployedModel, load_deployed, state_hash
from metarepair.runs.layout import Run
from metarepair.weights import kit_folder
from metarepair.weights.hub import HubError
from tasks.datasets import DatasetInfo
from tasks.datasets.source import table_for
from tasks.environments import Environment, UserImages
from tasks.errors import ConfigError, DataError, WeightsError
from tasks.records import Ints
from tasks.splits import JUDGE
from tasks.splits.digests import Digests, pixel_digests
from tasks.storage.manifest import DAMAGED, Manifest, damaged_files, require_manifest
from tasks.storage.paths import Place, local
from tasks.storage.stages import JOINT, KIT, META

DISTANCES, MOMENTS = "distances.npy", "moments"


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A finished kit: its folder, the content of `kit.json`, and the manifest of its pack."""

    folder: Place
    file: KitFile
    manifest: Manifest

    @property
    def run(self) -> Run:
        """The run that the kit is."""
        return Run(self.folder)

    def moments(self, name: str) -> Place:
        """The file of the moments of an experience."""
        return self.run.pack / MOMENTS / f"{name}.npy"

    def digests(self) -> Digests:
        """The sorted pixel digests of all images that the kit learned from or selected by, uint64 [N]."""
        found: Digests = np.load(local(self.run.pack / DIGESTS), allow_pickle=False)
        return found

    def distances(self) -> NDArray[np.float64]:
        """The distances of all pairs of experiences, [E, E]."""
        found: NDArray[np.float64] = np.load(local(self.run.pack / DISTANCES), allow_pickle=False)
        return found

    def deployed(self, name: str) -> DeployedModel:
        """The kit's DNN on the CPU, built as `name`. Raises ConfigError or WeightsError if it cannot be built so."""
        model, file = self.file.model, self.file
        info = DatasetInfo(
            classes=file.classes,
            image_size=file.image_size[0],
            corruption_table=file.corruption_table or table_for(max(file.image_size)),
            mean=file.mean,
            std=file.std,
        )
        weights = str(self.run.pack / WEIGHTS)
        return load_deployed(name, weights, info, stem=model.stem, input_size=model.input_size)

    def learned(self, digests_N: Digests) -> Ints:
        """The rows of these images from which the kit learned or by which it selected."""
        rows: Ints = np.flatnonzero(np.isin(digests_N, self.digests()))
        return rows


def open_kit(folder: Place) -> Kit:
    """Open the kit in a folder and verify its files.

    Raises StageError if it is not finished, DataError if a file is damaged or of another kit, ConfigError if it is of a
    newer version.
    """
    file = KitFile.read(folder)
    run = Run(folder)
    manifest = _manifest_of(run.pack, f"{KIT.remedy.removesuffix(' --config …')} --out {folder}")
    for stage, trained in ((JOINT, run.joint), (META, run.meta(SHARED))):
        held = _manifest_of(trained, MAKE_AGAIN)
        if held.digest != manifest.inputs.get(stage.kind):
            raise DataError(
                f"{trained} is not of the kit in {run.pack}: one of the two was replaced. {MAKE_AGAIN}"
            )
        _verify(trained, held)
    _verify(run.pack, manifest)
    return Kit(folder=folder, file=file, manifest=manifest)


def _manifest_of(folder: Place, remedy: str) -> Manifest:
    """The manifest of a folder of a kit. Raises StageError with `remedy` for none, DataError for a damaged one."""
    try:
        return require_manifest(folder, remedy)
    except DataError as error:
        raise DataError(f"{str(error).removesuffix(DAMAGED)}{MAKE_AGAIN}") from error


def _verify(folder: Place, manifest: Manifest) -> None:
    """Read every file of a folder of a kit. Raises DataError that names those that are damaged."""
    damaged = damaged_files(folder, manifest)
    if damaged:
        more = f", and {len(damaged) - 1} more files" if len(damaged) > 1 else ""
        raise DataError(
            f"{folder / damaged[0]} is missing or damaged (it differs from its checksum){more}. {MAKE_AGAIN}"
        )


@contextmanager
def fitting(kit: Kit | None, config: Config) -> Iterator[None]:
    """Name the kit if its weights do not fit the DNN or the classes of a run, which this block loads.

    Raises WeightsError.
    """
    try:
        yield
    except WeightsError as error:
        if kit is None or isinstance(error, HubError) or config.model.weights != str(kit.run.pack / WEIGHTS):
            raise
        file = kit.file
        raise WeightsError(
            f"the weights of the kit {kit.folder} do not fit the DNN {config.model.name.removeprefix(PYTHON)} with the "
            f"classes of the clean images. The kit is of {file.model.name.removeprefix(PYTHON)} with "
            f"{len(file.classes)} classes: {', '.join(file.classes[:20])}. It has the DNN and its classes: leave "
            "--model out, give the clean images' classes in this order (--classes), or make a kit for that DNN: "
            "metarepair kit"
        ) from error


def kit_of(config: Config) -> Kit | None:
    """The kit that the settings name, None if they name none. Raises as `open_kit` does."""
    return None if config.kit is None else open_kit(kit_folder(config.kit))


def check_targets(kit: Kit, config: Config) -> None:
    """Raise ConfigError if a target is an experience of the kit, or if the settings do not fit the kit.

    The kit's θ_meta has learned to repair for its experiences, so a repair for one of them proves nothing.
    """
    known = [target for target in config.targets if target in kit.file.names]
    if known:
        raise ConfigError(
            f"{known[0]} is a target, and the kit {kit.folder} learned from it: the repair would be judged by what it "
            "has learned. Choose another target, or make a kit without it (mining.experiences)."
        )
    if config.features.extractor != kit.file.extractor:
        raise ConfigError(
            f"features.extractor={config.features.extractor}, and the moments of the kit {kit.folder} are features of "
            f"{kit.file.extractor}. Leave the setting out."
        )
    query = config.train.query
    if config.refine and (query.right or query.environment or config.inner.learned_rates):
        raise ConfigError(
            "refine learns from the failures of a kit's experiences and from clean images, at given rates. Set "
            "train.query.right and train.query.environment to 0, and inner.learned_rates to false."
        )
    if config.refine and not kit.file.failures:
        raise ConfigError(
            f"refine={config.refine} learns from the failures of the experiences, and the kit {kit.folder} holds none "
            "(it was made with --no-failures or --no-images). Leave refine out, or make the kit with them."
        )


def check_deployed(kit: Kit, here: Surroundings) -> None:
    """Raise WeightsError if the run deploys another DNN, ConfigError if it prepares images in another way."""
    check_model(kit, here.deployed)
    file, data = kit.file, here.split("test")
    check_classes(data.classes, file.classes, kit.folder)
    if data.image_shape[:2] != file.image_size:
        sizes = [f"{height} × {width}" for height, width in (data.image_shape[:2], file.image_size)]
        raise ConfigError(
            f"the clean images have {sizes[0]} pixels, and those of the kit {kit.folder} have {sizes[1]}. Set "
            f"data.image_size={file.image_size[0]} (--image-size)."
        )


def check_model(kit: Kit, deployed: DeployedModel) -> None:
    """Raise WeightsError if this is not the kit's DNN, ConfigError if it has another preprocessing."""
    if state_hash(deployed.module.state_dict()) != kit.file.deployed:
        raise WeightsError(
            f"{deployed.name} has other weights than the DNN that the kit {kit.folder} was made for "
            f"({kit.file.model.name.removeprefix(PYTHON)}). A kit serves one DNN: give that DNN, or make a kit for "
            "this one (metarepair kit)."
        )
    for name, ours, its in (
        ("mean", deployed.mean, kit.file.mean),
        ("std", deployed.std, kit.file.std),
        ("input_size", deployed.input_size, kit.file.model.input_size),
    ):
        if ours != its:
            raise ConfigError(
                f"model.{name}={ours} here, and {its} in the kit {kit.folder}: the DNN would see other images than "
                "those that the kit was made with. Leave the setting out, and the kit's is used."
            )


def check_clean_judges(kit: Kit, here: Surroundings) -> None:
    """Raise DataError if the kit learned from, or selected by, a clean image that judges."""
    test = here.split("test")
    parts_N = here.test_parts()
    rows = np.flatnonzero(parts_N == JUDGE) if (parts_N == JUDGE).any() else np.arange(len(parts_N))
    _refuse(
        kit, pixel_digests(test.images(rows)), [f"number {row}" for row in rows], "clean images that judge"
    )


def check_judges(kit: Kit, targets: Sequence[Environment]) -> None:
    """Raise DataError if the kit learned from, or selected by, an image that judges a user's own environment."""
    for source in targets:
        if not isinstance(source, UserImages):
            continue
        rows = np.flatnonzero(source.parts_N == JUDGE)
        names = [source.names[row] for row in rows]
        _refuse(kit, source.digests_N[rows], names, f"images that judge {source.name}")


def _refuse(kit: Kit, digests_N: Digests, names: list[str], what: str) -> None:
    learned = kit.learned(digests_N)
    if len(learned):
        raise DataError(
            f"the kit {kit.folder} learned from, or selected by, {len(learned)} of the {len(digests_N)} {what}, such "
            f"as {names[learned[0]]}. What judges must be used for neither: give other images (--holdout, data.test) "
            "or make the kit without these."
        )
