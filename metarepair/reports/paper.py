"""Give the paper's numbers for a data set and a target, for comparison with ours.

Source: paper Tables 1 and 2 (DenseNet-121, accuracy on D_fail in percent) and Fig. 5 (order of experiences).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.corruptions import resolve

DIFFERENCES = (
    "The paper's numbers come from a different experiment: the deployed DNN (DenseNet-121 in the paper), "
    "the size of the data and the protocol differ. The paper reports the mean accuracy on D_fail over the "
    "tasks of the repair (mean acc_s), and names no held-out part for choosing settings; here D_fail is not "
    "used to choose anything. Read the columns side by side, not as a ranking."
)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of the paper: accuracy in percent by method and corruption (published names)."""

    name: str
    data: str
    dnn: str
    clean: float
    rows: Mapping[str, Mapping[str, float]]

    def column(self, target: str) -> dict[str, float]:
        """Return the accuracy in percent by method for a target; empty if the paper did not repair it."""
        return {method: row[target] for method, row in self.rows.items() if target in row}


_TARGETS = tuple(resolve(short) for short in ("GN", "ZM", "FOG", "BR", "PIX", "JPEG", "ET"))


def _rows(numbers: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {method: dict(zip(_TARGETS, row, strict=True)) for method, row in numbers.items()}


TABLE_1 = PaperTable(
    name="Table 1",
    data="CIFAR-10",
    dnn="DenseNet-121",
    clean=95.69,
    rows=_rows(
        {
            "Apricot": (37.03, 20.90, 36.89, 40.63, 42.25, 39.41, 37.11),
            "AugMix": (48.18, 63.92, 48.37, 50.90, 65.08, 54.71, 55.29),
            "Arachne": (37.15, 26.36, 45.89, 38.98, 33.81, 40.47, 49.48),
            "SENSEI": (21.24, 10.31, 14.34, 17.17, 17.39, 18.78, 14.33),
            "DeepRepair": (61.51, 73.14, 57.81, 56.94, 60.32, 63.41, 62.56),
            "ArchRepair": (62.16, 70.81, 58.06, 61.17, 60.58, 58.80, 62.71),
            "MetaRepair": (73.51, 89.45, 59.15, 65.78, 62.84, 70.23, 65.55),
        }
    ),
)
TABLE_2 = PaperTable(
    name="Table 2",
    data="tiny-ImageNet",
    dnn="DenseNet-121",
    clean=50.69,
    rows=_rows(
        {
            "Apricot": (17.80, 13.31, 16.85, 15.99, 12.59, 15.96, 11.83),
            "AugMix": (18.64, 13.96, 16.87, 16.51, 15.07, 16.25, 12.92),
            "Arachne": (18.23, 13.94, 17.09, 15.47, 10.87, 16.20, 14.76),
            "SENSEI": (16.95, 13.42, 16.24, 15.49, 11.80, 16.73, 12.90),
            "DeepRepair": (18.80, 14.09, 16.34, 14.93, 13.21, 17.12, 13.50),
            "ArchRepair": (18.85, 13.94, 16.96, 16.94, 13.69, 15.39, 13.77),
            "MetaRepair": (27.19, 18.14, 19.83, 25.32, 21.77, 26.51, 17.88),
        }
    ),
)

# Fig. 5, CIFAR-10: the experiences most correlated with a target, nearest first.
_NEAREST = {
    resolve(target): tuple(resolve(short) for short in order)
    for target, order in {
        "GN": ("SN", "SKN", "GB", "ET", "FR"),
        "ZM": ("ET", "SP", "GB", "CT", "FOG"),
        "FOG": ("SA", "SP", "CT", "BR", "FR"),
        "BR": ("SP", "CT", "SA", "FOG", "SW"),
    }.items()
}


def table_for(data: str) -> PaperTable | None:
    """Return the paper's table for one of our data sets; None if the paper has none."""
    plain = data.lower().replace("-", "").replace("_", "")
    if plain.startswith("cifar10") and not plain.startswith("cifar100"):
        return TABLE_1
    return TABLE_2 if plain.startswith("tinyimagenet") else None


def nearest_experiences(data: str, target: str) -> tuple[str, ...]:
    """Return Fig. 5's order of experiences for a target; empty if the paper gives none."""
    return _NEAREST.get(target, ()) if table_for(data) is TABLE_1 else ()
