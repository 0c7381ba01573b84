"""Say in full what a repair changed on images that judge: classes, pairs of classes, confidence and single images.

Source: paired comparison: McNemar 1947, by the exact test; expected calibration error: Guo et al. 2017.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from metarepair.evaluation.bounds import LEVEL, gain_interval
from metarepair.evaluation.calibration import calibration_bins, calibration_error
from tasks.records import Ints
from tasks.storage.paths import Place, write_text

# N images, M repaired DNNs, K classes

CLEAN, TARGET, OTHERS = "clean", "environment", "others"  # names of the sets of images that judge
SIDE_EFFECTS = "side_effects.json"
MOST_KINDS = 50  # that are measured apart
FALL = 0.1  # of a class's recall that is told, if it is not chance


@dataclass(frozen=True, kw_only=True)
class JudgedImages:
    """The predictions of the deployed DNN (first row) and of M repaired ones on images that judged.

    Attributes:
        name: CLEAN, or the environment's.
        image_ids_N: rows of clean images, ids of an environment's.
        severities_N: 1 to 5; 0 for images as they were given.
        kinds_N: the kind of each image that is also measured apart: its severity, group or environment.
        labels_N: classes.
        classes: predicted classes, int64 [1 + M, N].
        confidence: the softmax of the predicted classes, [1 + M, N].
        files: names of the images' files; empty if they have none.
    """

    name: str
    image_ids_N: Ints
    severities_N: Ints
    kinds_N: NDArray[np.str_]
    labels_N: Ints
    classes: NDArray[np.int64]
    confidence: NDArray[np.float32]
    files: tuple[str, ...] = ()


def judged_sets(seen: Sequence[JudgedImages]) -> dict[str, JudgedImages]:
    """Return clean images, the target's and, as one set, those of other environments; `seen` has this order."""
    clean, target, *others = seen
    return {CLEAN: clean, TARGET: target} | ({OTHERS: _together(others)} if others else {})


def side_effects_of(
    sets: Mapping[str, JudgedImages], model: int, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the side effects of repaired DNN `model`, from 0, on each of the `judged_sets`."""
    return {name: side_effects(images, model, class_names) for name, images in sets.items()}


def _together(environments: Sequence[JudgedImages]) -> JudgedImages:
    """The images of several environments as one set, in which an image's kind is its environment."""
    return JudgedImages(
        name=OTHERS,
        image_ids_N=np.concatenate([one.image_ids_N for one in environments]),
        severities_N=np.concatenate([one.severities_N for one in environments]),
        kinds_N=np.repeat([one.name for one in environments], [len(one.labels_N) for one in environments]),
        labels_N=np.concatenate([one.labels_N for one in environments]),
        classes=np.concatenate([one.classes for one in environments], axis=1),
        confidence=np.concatenate([one.confidence for one in environments], axis=1),
    )


def side_effects(images: JudgedImages, model: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what repaired DNN `model`, from 0, changed on N ≥ 1 images, as plain values.

    Returns:
        Shares are fractions. `images`; `before`, `after`: accuracy; `fixed`, `broken`: images that became right, and
        wrong; `gain`, with its 95% interval `low` to `high`; `p` of McNemar's exact test. `classes`: of each class with
        images its recall and precision before and after, the worst change first; a precision is None where nothing is
        predicted as the class. `confusion`: [label, predicted, images before, images after] for all pairs that occur.
        `calibration`: before and after. `kinds`: accuracy of each severity, group or environment, if there are 2 to
        MOST_KINDS of them.
    """
    predicted_2N, labels_N = images.classes[[0, model + 1]], images.labels_N
    right_2N = predicted_2N == labels_N
    confusion_2KK = np.stack([_confusion(one_N, labels_N, len(class_names)) for one_N in predicted_2N])
    kinds = list(dict.fromkeys(images.kinds_N.tolist()))
    if not 1 < len(kinds) <= MOST_KINDS:
        kinds = []
    return {
        **_paired(right_2N),
        "classes": _classes(right_2N, labels_N, confusion_2KK, class_names),
        "confusion": [
            [int(label), int(predicted), *map(int, confusion_2KK[:, label, predicted])]
            for label, predicted in np.argwhere(confusion_2KK.any(0))
        ],
        "calibration": {
            when: _calibration(images.confidence[row], right_N)
            for when, row, right_N in zip(("before", "after"), (0, model + 1), right_2N, strict=True)
        },
        "kinds": [
            {"name": kind, "images": int(of_kind_N.sum()), **_accuracies(right_2N[:, of_kind_N])}
            for kind, of_kind_N in ((kind, images.kinds_N == kind) for kind in kinds)
        ],
    }


def _accuracies(right_2N: NDArray[np.bool_]) -> dict[str, float]:
    return {"before": float(right_2N[0].mean()), "after": float(right_2N[1].mean())}


def _paired(right_2N: NDArray[np.bool_]) -> dict[str, Any]:
    """What became right, and what wrong."""
    before_N, after_N = right_2N
    fixed, broken = int((~before_N & after_N).sum()), int((before_N & ~after_N).sum())
    gain, low, high = gain_interval(fixed=fixed, broken=broken, images=len(before_N))
    p = float(binomtest(broken, fixed + broken).pvalue) if fixed + broken else 1.0
    found = {"fixed": fixed, "broken": broken, "gain": gain, "low": low, "high": high, "p": p}
    return {"images": len(before_N), **_accuracies(right_2N), **found}


def _confusion(predicted_N: Ints, labels_N: Ints, classes: int) -> Ints:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    found: Ints = multiclass_confusion_matrix(
        torch.from_numpy(np.ascontiguousarray(predicted_N)), torch.from_numpy(labels_N), num_classes=classes
    ).numpy()
    return found


def _classes(
    right_2N: NDArray[np.bool_], labels_N: Ints, confusion_2KK: Ints, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Each class with images, the worst change of recall first."""
    found = []
    for label in np.unique(labels_N):
        paired = _paired(right_2N[:, labels_N == label])
        before, after = (_precision(confusion_KK, label) for confusion_KK in confusion_2KK)
        found.append(
            {
                "name": names[label],
                "recall_before": paired["before"],
                "recall_after": paired["after"],
                "precision_before": before,
                "precision_after": after,
                **{key: paired[key] for key in ("images", "fixed", "broken", "p")},
            }
        )
    return sorted(found, key=lambda one: one["recall_after"] - one["recall_before"])


def _precision(confusion_KK: Ints, label: int) -> float | None:
    predicted = int(confusion_KK[:, label].sum())
    return int(confusion_KK[label, label]) / predicted if predicted else None


def _calibration(confidence_N: NDArray[np.float32], right_N: NDArray[np.bool_]) -> dict[str, Any]:
    bins = calibration_bins(confidence_N, right_N)
    return {"error": calibration_error(bins), "bins": [asdict(one) for one in bins]}


def write_side_effects(
    folder: Place, class_names: Sequence[str], repairs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the side effects of repairs, by METHOD/SEED, as side_effects.json."""
    told = {"class_names": list(class_names), "repairs": repairs}
    write_text(folder / SIDE_EFFECTS, json.dumps(told, allow_nan=False) + "\n")


def fallen_classes(effects: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes whose recall fell by FALL or more, beyond chance, the largest fall first.

    effects: of one repair, by set of images. Beyond chance: by McNemar's exact test at 5% over all classes of a set
    (Bonferroni). `lost`: whether at most half of the recall is left.
    """
    found = [
        {
            "where": where,
            **{key: one[key] for key in ("name", "images", "recall_before", "recall_after")},
            "lost": one["recall_after"] <= one["recall_before"] / 2,
        }
        for where, effect in effects.items()
        for one in effect["classes"]
        if one["recall_before"] - one["recall_after"] >= FALL
        and one["p"] <= (1 - LEVEL) / len(effect["classes"])
    ]
    return sorted(found, key=lambda one: one["recall_after"] - one["recall_before"])
