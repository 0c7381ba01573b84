"""The file `kit.json` of a repair kit, the settings that it gives to a run, and those that a kit is made with.

A kit names the DNN's import path and never holds code. A run imports it only if its own settings name it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from metarepair.config.data import Colour
from metarepair.config.run import ModelConfig, TaskConfig
from metarepair.config.section import Count, Positive, Section
from metarepair.config.training import InnerConfig
from metarepair.config.user_defaults import user_defaults
from metarepair.weights import kit_folder
from metarepair.weights.hub import KINDS
from tasks.errors import ConfigError, StageError, unreadable
from tasks.storage.paths import Place, read_json
from tasks.storage.stages import KIT

VERSION = 1
FILE, WEIGHTS, DIGESTS = "kit.json", "deployed.safetensors", "digests.npy"
TRAIN, TEST = "clean/train.parquet", "clean/test.parquet"
MAKE_AGAIN = "Copy the kit again, or make it again: metarepair kit"
PYTHON = "python:"  # in front of the class of a module that was given in Python, which no import path names

# What a kit is made with beyond the defaults for users, where the user's settings say nothing else.
_OWN: Mapping[str, Any] = {
    "targets": [],
    "mining": {"collect": 400, "images": 2500},
    "task": {"query_size": 64},
    "train": {
        "shared": True,
        "episodes": 60,
        "round_episodes": 20,
        "outer_rate": 5e-4,
        "outer_decay": "cosine",
    },
}
# Refining learns from images that a kit has, in steps as small as those of its own training.
REFINED: Mapping[str, Any] = {"train": {"query": {"failures": 0.5, "clean": 0.5}, "outer_rate": 5e-4}}


class KitExperience(Section):
    """An experience of a kit: the name of its environment, and how many failures its moments are of."""

    name: str
    category: str
    failures: Positive


class KitFile(Section):
    """The content of `kit.json`.

    deployed: the digest of the deployed weights. model: the DNN and its preprocessing, with `mean` and `std` given.
    image_size: height and width of the data set's images in pixels. extractor_digest: of the extractor's weights file.
    learned: the number of images that the kit learned from or selected by. clean: the numbers of clean images to learn
    from and of the test split, None if they were left out. failures: whether the failures of the experiences are there.
    """

    version: Annotated[int, Field(ge=1)]
    made_by: str
    deployed: str
    model: ModelConfig
    classes: tuple[str, ...] = Field(min_length=1)
    image_size: tuple[Positive, Positive]
    corruption_table: Literal["cifar", "tinyimagenet", "imagenet"] | None
    experiences: tuple[KitExperience, ...] = Field(min_length=1)
    extractor: str
    extractor_digest: str | None
    inner: InnerConfig
    task: TaskConfig
    learned: Count
    clean: tuple[Count, Count] | None
    failures: bool

    @property
    def mean(self) -> Colour:
        """The mean of the pixels; `model` always has it."""
        assert self.model.mean is not None
        return self.model.mean

    @property
    def std(self) -> Colour:
        """The standard deviation of the pixels; `model` always has it."""
        assert self.model.std is not None
        return self.model.std

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experiences."""
        return tuple(experience.name for experience in self.experiences)

    @property
    def imports(self) -> bool:
        """Whether building the DNN imports a module, which the user has to name."""
        return ":" in self.model.name and not self.model.name.startswith(KINDS)

    @classmethod
    def read(cls, kit: Place) -> Self:
        """Read the file of the kit in the folder `kit`. Raises StageError for none, ConfigError for a bad one."""
        path = kit / KIT.folder / FILE
        try:
            content = read_json(path)
            version = content["version"] if isinstance(content, dict) else None
            if type(version) is int and version > VERSION:
                raise ConfigError(
                    f"{path} has version {version}, and this program reads kits up to version {VERSION}. Update "
                    "metarepair, or make the kit again: metarepair kit"
                )
            return cls.model_validate(content)
        except FileNotFoundError as error:
            raise StageError(
                f"{kit} is not a finished repair kit (it has no {KIT.folder}/{FILE}). Make it with `metarepair kit`, "
                "or run the same command again if it was stopped."
            ) from error
        except (OSError, KeyError, ValueError, ValidationError) as error:
            raise ConfigError(f"{unreadable(path, error)}. {MAKE_AGAIN}") from error


def kit_defaults(*, workers: int) -> dict[str, Any]:
    """The settings that a kit is made with where the user gives no others, with so many Ray workers."""
    usual = user_defaults({"workers": workers})
    del usual["repair"], usual["workers"]
    return merged(usual, _OWN)


def with_kit(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, with those of its kit where it says nothing itself.

    These are the DNN and its preprocessing, the clean images, the extractor, and what θ_meta was trained with. Raises
    ConfigError, StageError or WeightsError for a kit that cannot be used, ConfigError for settings that contradict it.
    """
    # Settings that are no mapping are refused with the other settings.
    kit = values.get("kit") if isinstance(values, dict) else None
    if not isinstance(kit, str) or not kit:
        return values
    folder = kit_folder(kit)
    found = KitFile.read(folder)
    _check_name(found, folder, section_of(values, "model").get("name"))
    _check_preparation(found, folder, section_of(values, "data"))
    classes = section_of(values, "data").get("classes")
    if isinstance(classes, list | tuple):
        check_classes(tuple(classes), found.classes, folder)
    settings = merged(_given_by(found, folder, values), values)
    refine = values.get("refine")
    return merged(merged(REFINED, settings), {"train": {"episodes": refine}}) if refine else settings


def _given_by(found: KitFile, folder: Place, values: dict[str, Any]) -> dict[str, Any]:
    model, pack = section_of(values, "model"), folder / KIT.folder
    if found.imports and model.get("name") is None and not found.model.name.startswith(PYTHON):
        raise ConfigError(
            f"{folder} is a kit for the DNN {found.model.name}, whose module would be imported. A kit may come from "
            f"somebody else, so name it yourself if you trust it: model.name={found.model.name!r} (--model)."
        )
    given: dict[str, Any] = {
        "model": found.model.model_dump(mode="json") | {"weights": str(pack / WEIGHTS)},
        "features": {"extractor": found.extractor},
        "inner": found.inner.model_dump(mode="json"),
        "task": found.task.model_dump(mode="json"),
        "train": {"shared": True, "start": "joint"},
    }
    if not {"name", "root", "train", "test"} & section_of(values, "data").keys():
        if found.clean is None:
            raise ConfigError(
                f"{folder} holds no clean images (it was made with --no-images). Give some: data.name and data.root "
                "(--clean)."
            )
        given["data"] = {
            "name": "parquet",
            "train": str(pack / TRAIN),
            "test": str(pack / TEST),
            "classes": list(found.classes),
            "corruption_table": found.corruption_table,
        }
    return given


def _check_name(found: KitFile, folder: Place, name: object) -> None:
    """Raise ConfigError if `name` is another DNN of timm than the kit's; of an import path, its weights tell."""
    names = [str(one).removeprefix("timm:") for one in (name, found.model.name)]
    if name is None or names[0] == names[1] or any(":" in one for one in names):
        return
    raise ConfigError(
        f"model.name={name!r} (--model) is another DNN than that of the kit {folder}, {found.model.name}. The kit has "
        "the DNN, its weights and its classes: leave --model and --weights out, or make a kit for that DNN: "
        "metarepair kit"
    )


def _check_preparation(found: KitFile, folder: Place, data: dict[str, Any]) -> None:
    """Raise ConfigError if the data are to be prepared in another way than the kit's DNN expects."""
    for name, its in (("mean", found.mean), ("std", found.std)):
        given = data.get(name)
        if isinstance(given, list | tuple) and tuple(given) != its:
            raise ConfigError(
                f"data.{name}={list(given)} (--{name}), and the DNN of the kit {folder} has mean={list(found.mean)} "
                f"and std={list(found.std)}. Leave --mean and --std out, and the kit's are used, or make a kit with "
                "others: metarepair kit"
            )
    size, (height, width) = data.get("image_size"), found.image_size
    if size is not None and (size, size) != found.image_size:
        raise ConfigError(
            f"data.image_size={size} (--image-size), and the images of the kit {folder} have {height} × {width} "
            f"pixels. {_size_remedy(found)}, or make a kit with this size: metarepair kit"
        )


def _size_remedy(found: KitFile) -> str:
    height, width = found.image_size
    square = f", or give {height} if your clean images have another size" if height == width else ""
    return f"Leave it out{square}"


def check_classes(classes: tuple[str, ...], its: tuple[str, ...], folder: Place) -> None:
    """Raise ConfigError unless these are the classes of the kit in `folder`, `its`, in their order."""
    if classes == its:
        return
    if sorted(map(str, classes)) == sorted(its):
        i = next(i for i, pair in enumerate(zip(classes, its, strict=True)) if pair[0] != pair[1])
        raise ConfigError(
            f"the classes are in another order than in the kit {folder}: class {i} is {classes[i]!r} here and "
            f"{its[i]!r} there. Give them in the order of the kit (data.classes, --classes), or leave the setting out "
            f"if the clean images are the kit's: {_some(its)}"
        )
    raise ConfigError(
        f"there are {len(classes)} classes here ({_some(classes)}), and the DNN of the kit {folder} has {len(its)}: "
        f"{_some(its)}. The kit has the DNN and its classes: leave --classes out and give clean images of these "
        "classes, if any; or make a kit for a DNN with other classes: metarepair kit"
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(map(str, names[:20])) + (", …" if len(names) > 20 else "")


def section_of(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of a section, none if it is missing or no mapping."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def merged(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are given, and usual ones where none are, group by group."""
    both = {key: merged(usual[key], value) for key, value in given.items() if _groups(usual.get(key), value)}
    return {**usual, **given, **both}


def _groups(one: object, other: object) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)


def check_kit_settings(config: Any) -> None:
    """Raise ConfigError if a kit cannot be made with these settings."""
    wrong = {
        f"targets={list(config.targets)}": config.targets,
        f"kit={config.kit!r}": config.kit is not None,
        "train.shared=false": not config.train.shared,
        "joint.draw=confidence": config.joint.draw == "confidence",
        f"experiences.choice={config.experiences.choice}": config.experiences.choice != "all",
        "preparation_budget": config.preparation_budget is not None,
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ConfigError(
            f"{found[0]}: a kit serves targets that are not known yet, all by one training on all its experiences, so "
            "it has no targets and no confidence. Leave the setting out."
        )
