"""Make and use a repair kit from Python, without Ray.

from metarepair import RepairKit
kit = RepairKit.build(model, clean=(images, labels), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), out="kit")
fixed = kit.repair((photographs, labels), max_broken=0.01)
fixed.module, fixed.report("report.html"), fixed.save("fixed/model.safetensors")
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from metarepair.config.kit import PYTHON, KitFile, kit_defaults, merged
from metarepair.config.limits import user_limits
from metarepair.config.load import parse_config
from metarepair.config.photographs import NAME, Photographs
from metarepair.config.run import Config
from metarepair.config.user_defaults import user_defaults
from metarepair.data.given_images import GivenImages, collect_images
from metarepair.data.given_module import deploy_given
from metarepair.data.image_files import local_path, named_classes
from metarepair.data.save_images import save_images
from metarepair.fixing.plan import ALL_CANDIDATES
from metarepair.kit.kit import Kit, check_model, open_kit
from metarepair.models.build import save_weights
from metarepair.models.factory import given_as
from metarepair.models.wrappers import copied
from metarepair.repairs.export import equality_images
from metarepair.repairs.exportable import Exportable, Origin, with_ending
from metarepair.repairs.result import RESULT
from metarepair.repairs.saved import ARCHITECTURE, load_repaired
from metarepair.reports.card import card_of_repair
from metarepair.reports.outcome import outcome_of
from metarepair.runs.layout import without_empty_run
from metarepair.stages.kit import KitWork
from metarepair.stages.pipeline import Pipeline
from metarepair.weights import kit_folder
from tasks.datasets import dataset_info
from tasks.errors import ConfigError, DataError
from tasks.storage.paths import copy_file, place, read_json, remove_tree
from tasks.storage.run_lock import locked

GIVEN = "given"  # folder of what was given in Python, while a kit is made


@dataclass(frozen=True, kw_only=True)
class FixedModel(Exportable):
    """The result of `RepairKit.repair`. Accuracies are fractions, on images that only judge.

    Attributes:
        module: The DNN to use, a new module in evaluation mode; a copy of the given one if it is to be kept.
        kept: Whether the given weights are kept, because no repair gained anything inside the limits.
        words: One sentence: whether to take it, by how much it is better, at what cost.
        method: The method that repaired it, `none` if the given weights are kept.
        before: Accuracy of the given DNN on the photographs that judge.
        after: Accuracy of `module` on them.
        clean_before: Accuracy of the given DNN on the clean images that judge.
        clean_after: Accuracy of `module` on them.
        folder: The folder of the run, with all candidates, tables and figures.
    """

    module: nn.Module = field(repr=False)
    kept: bool
    words: str
    method: str
    before: float
    after: float
    clean_before: float
    clean_after: float
    folder: Path
    _origin: Origin = field(repr=False)

    def report(self, path: str | Path) -> Path:
        """Write the report on all candidates, a single HTML page.

        Args:
            path: The file to write; it ends in `.html`.

        Returns:
            The path.

        Raises:
            ConfigError: `path` has another ending.
        """
        path = with_ending(path, ".html")
        copy_file(self.folder / "report" / "index.html", path)
        return path


@dataclass(frozen=True, kw_only=True)
class RepairKit:
    """A repair kit of one DNN: everything that a repair needs and that needs no failures.

    `build` makes one, `load` opens one, `repair` uses it. Nothing here imports Ray.

    Attributes:
        folder: The kit's folder, as text: local, s3:// or gs://.
        module: The kit's DNN, in evaluation mode; `repair` does not change it.

    Example:
        >>> from metarepair import RepairKit
        >>> kit = RepairKit.load("shipped:resnet8_cifar10")  # of the shipped ResNet-8
        >>> kit.classes[:3]
        ('airplane', 'automobile', 'bird')
    """

    folder: str
    module: nn.Module = field(repr=False)
    _name: str = field(repr=False)

    @classmethod
    def build(
        cls,
        model: nn.Module,
        *,
        clean: Any,
        mean: Sequence[float],
        std: Sequence[float],
        out: str | Path = "kit",
        classes: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        images: bool = True,
        failures: bool = True,
    ) -> RepairKit:
        """Make a kit, or resume one that was cut short. It takes minutes: joint training and meta-training.

        Args:
            model: A module that maps normalised images [B, 3, H, W] to logits [B, K].
            clean: Labelled clean images: a pair (images, labels), images uint8 [N, H, W, 3] or [N, 3, H, W], a
                sequence of (image, label), or a local path as `metarepair kit --clean` reads it: a folder of class
                folders, a CSV, JSON Lines, Parquet or Arrow file. Half is learned from; a quarter only judges.
            mean: Mean of each channel, of pixels in [0, 1], as the DNN was trained.
            std: Standard deviation of each channel, as `mean`.
            out: The local folder of the kit.
            classes: Names of the classes, in the order of the outputs. None: their numbers; of a path, its sorted
                folders or labels, or the names in its schema.
            settings: Settings of a run by group, such as {"joint": {"rounds": 40}}, in place of a kit's own. For a
                path, {"data": {"image_size": 64}} resizes, and `data.label_column` and others name a table's columns.
            images: Whether the kit may hold images: clean ones, and the failures.
            failures: Whether the kit keeps the failures of its experiences, which `refine` needs.

        Returns:
            The kit.

        Raises:
            UserError: Base class of what can be wrong with the arguments (`tasks.errors`); the message says what to do.
        """
        root = place(str(out))
        if not isinstance(root, Path):
            raise ConfigError(
                f"out={str(out)!r}: a kit is built in a local folder. Copy it to the object store then."
            )
        held, names, on_disk = root / GIVEN, named_classes(classes), isinstance(clean, str | Path)
        place_of_clean = local_path(clean, name="clean") if on_disk else held / "clean.parquet"
        data = {"name": "images", "root": str(place_of_clean)} | ({} if names is None else {"classes": names})
        values = merged(
            merged(kit_defaults(workers=0), settings or {}),
            {"name": root.name, "storage_path": str(root.parent), "workers": 0, "data": data},
        )
        if on_disk:
            info = dataset_info(parse_config(values, where="RepairKit.build").data.source())
            given, names = _blank(info.image_size), info.classes
        else:
            given = _pixels(collect_images(clean, name="clean"))
        deployed = deploy_given(model, given, classes=names, mean=mean, std=std)
        name = PYTHON + deployed.name
        with given_as(name, deployed.module):
            save_weights(held / "model.safetensors", deployed.module.state_dict(), {"model": name})
            if not on_disk:
                save_images((given.images_NHWC, given.labels_N), place_of_clean)
            own = {
                "model": {
                    "name": name,
                    "weights": str(held / "model.safetensors"),
                    "mean": list(deployed.mean),
                    "std": list(deployed.std),
                },
                "data": {"classes": names or tuple(map(str, range(deployed.num_classes)))},
            }
            config = parse_config(merged(values, own), where="RepairKit.build")
            work = KitWork(Pipeline(config), images=images, failures=failures)
            with locked(root, "kit"):
                work.make()
            remove_tree(held)
        return cls(folder=str(root), module=deployed.module, _name=name)

    @classmethod
    def load(cls, folder: str | Path, *, model: nn.Module | str | None = None) -> RepairKit:
        """Open a finished kit and verify its files.

        Args:
            folder: The kit's folder: local, s3:// or gs://; `shipped:NAME` for one of the project.
            model: The kit's DNN as a module, or the import path `module:FACTORY` of it. Not needed for a DNN of timm or
                of the project. A kit names an import path, but imports nothing that you do not name.

        Returns:
            The kit.

        Raises:
            StageError: The folder holds no finished kit.
            ConfigError: The DNN has to be named, or the kit is of a newer version.
            WeightsError: The DNN is not the kit's.
            DataError: A file of the kit is damaged.
        """
        kit = open_kit(kit_folder(str(folder)))
        name = _name_of(kit.file, model, str(folder))
        with _registered(name, model):
            deployed = kit.deployed(name)
        if isinstance(model, nn.Module):
            deployed = replace(deployed, module=copied(model).eval())
        check_model(kit, deployed)
        return cls(folder=str(folder), module=deployed.module, _name=name)

    @cached_property
    def _kit(self) -> Kit:
        return open_kit(kit_folder(self.folder))

    @property
    def experiences(self) -> tuple[str, ...]:
        """The names of the environments that the kit learned from."""
        return self._kit.file.names

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the DNN's outputs."""
        return self._kit.file.classes

    def repair(
        self,
        photographs: Any,
        *,
        holdout: Any = None,
        clean: Any = None,
        max_broken: float | None = None,
        max_clean_drop: float | None = None,
        protected_classes: Mapping[str, float] | None = None,
        min_gain: float = 0.0,
        refine: int = 0,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
    ) -> FixedModel:
        """Repair a copy of the DNN from photographs of the setting that it fails in.

        A fifth of the photographs is set aside before anything else and only judges; another fifth only selects. All
        candidates are repaired, and the one that selects best inside the limits is taken.

        Args:
            photographs: Labelled photographs, those that the DNN gets right included, in any form of `build`'s `clean`.
                Labels of a folder or table are names of the kit's `classes` or their numbers. Photographs are resized
                to the kit's clean images.
            holdout: Other photographs that only judge, in place of a fifth of `photographs`; in any of these forms.
            clean: Labelled clean images, in place of those that the kit holds; in any of these forms.
            max_broken: Largest share of clean images, right before, that may be wrong after: the upper bound at 95%.
            max_clean_drop: Largest fall of the accuracy on clean images; 0.005 if neither limit is given.
            protected_classes: Largest fall of the recall of each class that may not lose more.
            min_gain: Least gain of accuracy on the photographs.
            refine: Further episodes of meta-training for this setting, if the kit holds its failures.
            seed: Seed of every random draw.
            settings: Settings of a run by group, in place of those of a repair with a kit.
            out: Folder of the run, which can be inspected. None: a temporary one, deleted with the result.

        Returns:
            The repaired DNN with its accuracies and its report.

        Raises:
            UserError: Base class of what can be wrong with the arguments (`tasks.errors`); the message says what to do.
        """
        temporary = Path(tempfile.mkdtemp(prefix="metarepair-")) if out is None else None
        root = place(str(out)) if temporary is None else temporary / "repaired"
        if not isinstance(root, Path):
            raise ConfigError(
                f"out={str(out)!r}: a repair from Python is made in a local folder. Give one, or none."
            )
        limits = user_limits(
            max_broken=max_broken,
            max_clean_drop=max_clean_drop,
            protected_classes=protected_classes or {},
            min_gain=min_gain,
        )
        with _registered(self._name, self.module), tempfile.TemporaryDirectory() as folder:
            described = Photographs(
                out=str(root),
                images=_saved(photographs, Path(folder), "photographs"),
                holdout=None if holdout is None else _saved(holdout, Path(folder), "holdout"),
                clean=None if clean is None else _saved(clean, Path(folder), "clean"),
                classes=None if clean is None else self.classes,
                kit=self.folder,
            )
            usual = {
                "repair": user_defaults({})["repair"] | {"methods": list(ALL_CANDIDATES)},
                "evaluate": {"others": []},
                "limits": limits,
                "refine": refine,
                "seed": seed,
                "model": {"name": self._name},
            }
            values = merged(merged(described.settings(), usual), settings or {})
            if "none" not in values["repair"]["methods"]:  # which tells how good the given DNN is
                values["repair"]["methods"] = [*values["repair"]["methods"], "none"]
            try:
                fixed = self._repaired(parse_config(values, where="RepairKit.repair"))
            except BaseException:
                _remove(temporary)
                raise
        weakref.finalize(fixed, _remove, temporary)
        return fixed

    def _repaired(self, config: Config) -> FixedModel:
        with without_empty_run(config):
            pipeline = Pipeline(config)
            with locked(pipeline.run.root, "run"):
                pipeline.whole()
        result = read_json(pipeline.run.repaired(NAME) / RESULT)
        rows = {(row["method"], row["seed"]): row for row in result["methods"]}
        choice = result["choice"]
        row, before = rows[choice["method"], choice["seed"]], rows["none", choice["seed"]]
        folder, here = (pipeline.run.root / row["weights"]).parent, pipeline.here
        module = load_repaired(folder, row["method"], here.deployed)
        changed = folder / ARCHITECTURE
        card = card_of_repair(pipeline.run, result, row["method"], row["seed"])
        assert card is not None  # made just now
        return FixedModel(
            module=module,
            kept=choice["kept"],
            words=outcome_of(result, only_failures=False).words,
            method=row["method"],
            before=before["corrupted"],
            after=row["corrupted"],
            clean_before=row["clean_before"],
            clean_after=row["clean"],
            folder=Path(str(pipeline.run.root)),
            _origin=Origin(
                repaired=replace(here.deployed, module=module),
                images_NHWC=equality_images(here.split("test")),
                preprocessing=here.deployed.preprocessing,
                architecture=read_json(changed) if changed.is_file() else None,
                card=card,
            ),
        )


def _remove(folder: Path | None) -> None:
    if folder is not None:
        remove_tree(folder)


def _name_of(file: KitFile, model: nn.Module | str | None, folder: str) -> str:
    """What the settings of a run call the DNN. Raises ConfigError if it has to be given."""
    if isinstance(model, nn.Module):
        return PYTHON + type(model).__name__
    if isinstance(model, str):
        return model
    if file.imports:
        built = file.model.name.removeprefix(PYTHON)
        raise ConfigError(
            f"the kit {folder} is of {built}, which the project does not have: give it, "
            "RepairKit.load(folder, model=…), as a module or as the import path module:FACTORY."
        )
    return file.model.name


@contextmanager
def _registered(name: str, model: object) -> Iterator[None]:
    """Let settings name the module during the block, if it was given as one."""
    if name.startswith(PYTHON) and isinstance(model, nn.Module):
        with given_as(name, model):
            yield
    else:
        yield


def _blank(image_size: int) -> GivenImages:
    """Two black images, to check that a DNN takes images of this size before those of a folder or table are read."""
    return GivenImages(
        name="clean",
        images_NHWC=np.zeros((2, image_size, image_size, 3), np.uint8),
        labels_N=np.zeros(2, np.int64),
        image_ids_N=np.arange(2),
    )


def _pixels(given: GivenImages) -> GivenImages:
    """Raises DataError unless the images are pixels in colour, which corruptions need."""
    if given.prepared or given.channels != 3:
        kind = "normalised floats" if given.prepared else "grey"
        raise DataError(
            f"{given.name}: the images are {kind}; a kit corrupts them, so give uint8 pixels in colour."
        )
    return given


def _saved(given: Any, folder: Path, name: str) -> str:
    """The path of labelled images that a run can read: as given, or saved from Python's objects."""
    if isinstance(given, str | Path):
        return str(local_path(given, name=name))
    return str(save_images(given, folder / f"{name}.parquet"))
