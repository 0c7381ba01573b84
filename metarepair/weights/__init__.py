"""Find the weights files that settings name. This folder holds the shipped ones; README.md says how they were made."""

from pathlib import Path

from tasks.errors import WeightsError

SHIPPED = Path(__file__).parent
SCHEME = "shipped:"


def resolve_weights(weights: str) -> Path:
    """Return the path of model.weights: `shipped:NAME` is a file of this package, anything else is a path.

    Raises WeightsError if there is no such file. Imports no torch, so a wrong path is reported at once.
    """
    if weights.startswith(SCHEME):
        path = SHIPPED / f"{weights.removeprefix(SCHEME)}.safetensors"
        if not path.is_file():
            shipped = ", ".join(sorted(f"{SCHEME}{p.stem}" for p in SHIPPED.glob("*.safetensors")))
            raise WeightsError(f"model.weights={weights!r} is not shipped. There are: {shipped or 'none'}")
        return path
    path = Path(weights).expanduser()
    if path.is_dir():
        raise WeightsError(f"model.weights={weights!r} is a folder. Give the weights file itself.")
    if not path.is_file():
        raise WeightsError(
            f"model.weights={weights!r}: no such file. Give a .safetensors or torch.save file, or "
            "shipped:resnet8_cifar10."
        )
    return path


def extractor_file(extractor: str, weights: str | Path) -> Path:
    """Return the path of features.weights. Raises WeightsError if there is no such file. Imports no torch either."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"features.weights={weights} is not a file: give {extractor}'s .safetensors or torch.save file"
        )
    return path
