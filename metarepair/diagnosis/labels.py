"""Rank labels by how likely they are wrong, from features of the images and all their labels.

Two published measures, for each image:

    confidence   the probability of its label, by a linear classifier of the features that was fitted to images of other
                 groups: a low one is suspicious. From these probabilities, confident learning says which labels are
                 wrong: those of images that are in another class's region, where the probability of that class is at
                 least the mean of the images that have its label (Northcutt et al. 2021, Eq. 2, with the order of
                 Sec. 3.2, self-confidence; Kuan and Mueller 2022 found that order best for ranking)
    neighbours   the share of its nearest images, by the angle of their features, that have another label (k-nearest
                 disagreement; Wilson 1972, "Asymptotic Properties of Nearest Neighbor Rules Using Edited Data")

The order is by confidence; among equals, by neighbours. The labels to be ranked are often those of failures alone. All
images with labels are to be given, right ones too: of failures alone, a classifier would learn what the DNN gets wrong.

Sources: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"; Kuan and
Mueller 2022, "Model-agnostic label quality scoring to detect real-world label errors".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarepair.diagnosis.head import FOLDS, Doubles, cross_fitted
from tasks.errors import DataError
from tasks.records import Ints

# N images, D features, K classes, M images with reliable labels

NEIGHBOURS = 20
MOST = 0.9  # share of the neighbours with another label, from which they speak against a label
STEPS = FOLDS + 1  # calls of `on_step`
_BLOCK = 1024  # rows whose neighbours are sought at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedLabels:
    """How suspicious the label of each of N images is.

    Attributes:
        confidence_N: probability of the label, 0 to 1.
        suggested_N: the most probable class.
        neighbours_N: share of the nearest images with another label, 0 to 1.
        wrong_N: whether confident learning takes the label for wrong.
    """

    confidence_N: Doubles
    suggested_N: Ints
    neighbours_N: Doubles
    wrong_N: NDArray[np.bool_]

    @property
    def doubted_N(self) -> NDArray[np.bool_]:
        """Whether both measures speak against the label, bool [N].

        Confident learning alone also takes many hard images for wrong where the DNN does badly. Of failures with 39
        wrong labels (benchmarks/suspicious_labels.py, motion blur and JPEG compression, two seeds), it took 65 to 70
        for wrong, and 25 of them were; both measures doubted 48, and 25 of them were wrong.
        """
        doubted_N: NDArray[np.bool_] = self.wrong_N & (self.neighbours_N >= MOST)
        return doubted_N

    def order(self, rows: Ints | None = None) -> Ints:
        """The given rows (None: all), the most suspicious first. Equal ones keep their order."""
        chosen = np.arange(len(self.confidence_N)) if rows is None else rows
        ordered: Ints = chosen[np.lexsort((-self.neighbours_N[chosen], self.confidence_N[chosen]))]
        return ordered


def ranked_labels(
    features_ND: NDArray[np.floating],
    labels_N: Ints,
    *,
    num_classes: int,
    seed: int,
    groups_N: Ints | None = None,
    clean: tuple[NDArray[np.floating], Ints] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> RankedLabels:
    """Measure how suspicious the labels of images are.

    Args:
        features_ND: [N, D] features of the images, of any scale.
        labels_N: int64 [N], their labels, 0 to K − 1.
        num_classes: K.
        seed: of the folds.
        groups_N: int64 [N], the number of each image's group; images of one group, such as near-duplicates, say nothing
            about each other's labels. `None` if each is alone.
        clean: features [M, D] and labels [M] of other images, whose labels are not ranked.
        on_step: called after each of `STEPS` steps of about equal length.

    Returns:
        The measures, and the order.

    Raises:
        DataError: the features are not finite, or there are neither two groups nor clean images.
    """
    groups_N = np.arange(len(labels_N)) if groups_N is None else groups_N
    _check(features_ND, groups_N, clean)
    rows_ND = features_ND.astype(np.float64)
    beside = None if clean is None else (clean[0].astype(np.float64), clean[1])
    probabilities_NK = cross_fitted(
        rows_ND, labels_N, groups_N, beside=beside, num_classes=num_classes, seed=seed, on_fold=on_step
    )
    neighbours_N = disagreement(rows_ND, labels_N, groups_N, clean=beside)
    on_step()
    return RankedLabels(
        confidence_N=probabilities_NK[np.arange(len(labels_N)), labels_N],
        suggested_N=probabilities_NK.argmax(axis=1),
        neighbours_N=neighbours_N,
        wrong_N=confidently_wrong(probabilities_NK, labels_N),
    )


def _check(
    features_ND: NDArray[np.floating], groups_N: Ints, clean: tuple[NDArray[np.floating], Ints] | None
) -> None:
    if len(np.unique(groups_N)) < 2 and (clean is None or not len(clean[1])):
        raise DataError(
            f"the labels of {len(groups_N)} images of one group cannot be compared with others. Give images of at "
            "least two groups, or clean images."
        )
    for rows in (features_ND, *(() if clean is None else (clean[0],))):
        if not np.isfinite(rows).all():
            raise DataError(
                "features of the deployed DNN are not finite. Check its weights and mean and std."
            )


def confidently_wrong(probabilities_NK: Doubles, labels_N: Ints) -> NDArray[np.bool_]:
    """Which labels confident learning takes for wrong, bool [N]: the off-diagonal of the confident joint.

    A class's threshold is the mean probability of the images with its label. An image counts for the most probable of
    the classes whose threshold it reaches, and for none if it reaches no threshold.
    """
    classes = probabilities_NK.shape[1]
    thresholds_K = np.full(classes, np.inf)  # a class without labels has no region
    for label in np.unique(labels_N):
        thresholds_K[label] = probabilities_NK[labels_N == label, label].mean()
    reached_NK = probabilities_NK >= thresholds_K
    counted_N = np.where(reached_NK, probabilities_NK, -1.0).argmax(axis=1)
    wrong_N: NDArray[np.bool_] = reached_NK.any(axis=1) & (counted_N != labels_N)
    return wrong_N


def disagreement(
    features_ND: Doubles, labels_N: Ints, groups_N: Ints, *, clean: tuple[Doubles, Ints] | None = None
) -> Doubles:
    """The share of each image's NEIGHBOURS nearest images of other groups that have another label, [N].

    Nearest is by the cosine of the features. Fewer neighbours are taken if there are fewer.
    """
    others_MD, of_M, in_M = features_ND, labels_N, groups_N
    if clean is not None:
        others_MD, of_M = np.concatenate([others_MD, clean[0]]), np.concatenate([of_M, clean[1]])
        in_M = np.concatenate([in_M, groups_N.max() + 1 + np.arange(len(clean[1]))])
    unit_ND, unit_MD = _unit(features_ND), _unit(others_MD)
    shares = []
    for start in range(0, len(labels_N), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosine_BM = unit_ND[rows] @ unit_MD.T
        allowed_BM = groups_N[rows, None] != in_M
        cosine_BM[~allowed_BM] = -np.inf
        count = min(NEIGHBOURS, len(of_M))
        near_BK = np.argsort(-cosine_BM, axis=1, kind="stable")[:, :count]
        used_BK = np.take_along_axis(allowed_BM, near_BK, axis=1)
        other_BK = used_BK & (of_M[near_BK] != labels_N[rows, None])
        shares.append(other_BK.sum(axis=1) / np.maximum(used_BK.sum(axis=1), 1))
    return np.concatenate(shares) if shares else np.empty(0)


def _unit(features_ND: Doubles) -> Doubles:
    unit_ND: Doubles = features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND
