"""Find the weights files that settings name. This folder holds the shipped ones; README.md says how they were made."""

from collections.abc import Iterable
from pathlib import Path

from metarepair.weights.hub import HUBS, TORCHVISION, hub_weights, is_hub, read_hub_name
from tasks.errors import ConfigError, UserError, WeightsError, near_names
from tasks.storage.paths import Place, local, place

SHIPPED = Path(__file__).parent
SCHEME = "shipped:"


def resolve_weights(weights: str, *, setting: str = "model.weights", others: str = "") -> Path:
    """Return the path that a setting names: `shipped:NAME` is a file of this package, others are of a hub or paths.

    A hub's file is downloaded if it is not in the cache. others: what else the setting may be, for the message. Raises
    WeightsError if there is no such file. Imports no torch but for torchvision's names, so a wrong path is reported at
    once.
    """
    found = shipped_file(f"{setting}=", weights, SHIPPED.glob("*.safetensors"), WeightsError)
    if found is not None:
        return found
    if weights.startswith(TORCHVISION):
        from metarepair.weights.torchvision_files import torchvision_weights

        return torchvision_weights(weights)
    if is_hub(weights):
        return hub_weights(read_hub_name(weights))
    if "://" in weights:  # of a kit on an object store
        try:
            return local(place(weights))
        except (FileNotFoundError, ConfigError) as error:
            raise WeightsError(f"{setting}={weights!r}: no such file ({error}).") from error
    path = Path(weights).expanduser()
    if path.is_dir():
        raise WeightsError(f"{setting}={weights!r} is a folder. Give the weights file itself.")
    if not path.is_file():
        raise WeightsError(
            f"{setting}={weights!r}: no such file. Give {others}a .safetensors or torch.save file, or "
            "shipped:resnet8_cifar10."
        )
    return path


def shipped_file(
    what: str, text: str, files: Iterable[Path], refusal: type[UserError] = ConfigError
) -> Path | None:
    """Return the one of `files` that `shipped:NAME` names, NAME without its ending; None if `text` is no such name.

    what: what the text was given for, as a message begins. Raises `refusal`, with near names, for another name.
    """
    if not text.startswith(SCHEME):
        return None
    name, shipped = text.removeprefix(SCHEME), {path.stem: path for path in files}
    if name not in shipped:
        known = ", ".join(f"{SCHEME}{one}" for one in sorted(shipped))
        raise refusal(
            f"{what}{text!r} is not shipped{near_names(name, list(shipped)) or '.'} There are: {known or 'none'}"
        )
    return shipped[name]


def is_named(text: str) -> bool:
    """Whether a setting names a file, shipped or of a hub, and gives no path."""
    return text.startswith((SCHEME, *HUBS))


def kit_folder(kit: str) -> Place:
    """Return the folder of a repair kit: `shipped:NAME` is one of this package, anything else is a path.

    Raises ConfigError if the project ships no such kit, or the path is of an unsupported kind.
    """
    return shipped_file("kit=", kit, SHIPPED.glob("*.kit")) or place(kit)


def start_file(start: str) -> Path | None:
    """Return the weights file that train.start names; None for `deployed` and `joint`. Raises WeightsError as above."""
    if start in ("deployed", "joint"):
        return None
    return resolve_weights(start, setting="train.start", others="deployed, joint, ")


def extractor_file(extractor: str, weights: str | Path) -> Path:
    """Return the path of features.weights. Raises WeightsError if there is no such file. Imports no torch either."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"features.weights={weights} is not a file: give {extractor}'s .safetensors or torch.save file"
        )
    return path
