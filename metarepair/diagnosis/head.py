"""Fit a linear classifier to features, and predict each row by one that was fitted without its group.

The classifier is multinomial logistic regression with a penalty on its weights, on features of mean 0 and deviation 1.
Of more than LARGEST features, the LARGEST directions of most variance are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from tasks.keys import keyed_generator
from tasks.records import Ints
from tasks.splits.parts import in_order

# N rows, D features, K classes

Doubles = NDArray[np.float64]
FOLDS = 5
PENALTY = 0.1  # half of it times the squared weights is added to the mean loss
STEPS = 200  # of L-BFGS, at most
LARGEST = 256  # features


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """A linear classifier of features. mean_D, scale_D: of the rows it was fitted to. directions_DR: orthogonal."""

    mean_D: Doubles
    scale_D: Doubles
    directions_DR: Doubles | None
    weights_RK: Doubles
    bias_K: Doubles

    def probabilities(self, features_ND: Doubles) -> Doubles:
        """The probability of each class, [N, K]."""
        reduced_NR = _reduced((features_ND - self.mean_D) / self.scale_D, self.directions_DR)
        probabilities_NK: Doubles = softmax(reduced_NR @ self.weights_RK + self.bias_K, axis=1)
        return probabilities_NK


def fit_head(features_ND: Doubles, labels_N: Ints, *, num_classes: int) -> LinearHead:
    """Fit a linear classifier to features [N, D] and labels [N], N ≥ 1."""
    mean_D, scale_D = features_ND.mean(axis=0), features_ND.std(axis=0) + 1e-6
    standard_ND = (features_ND - mean_D) / scale_D
    directions_DR = _directions(standard_ND)
    rows_NR = _reduced(standard_ND, directions_DR)
    targets_NK = np.eye(num_classes)[labels_N]

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        weights_RK, bias_K = _unpacked(flat, num_classes)
        logs_NK = log_softmax(rows_NR @ weights_RK + bias_K, axis=1)
        error_NK = (np.exp(logs_NK) - targets_NK) / len(labels_N)
        value = -(logs_NK * targets_NK).sum() / len(labels_N) + PENALTY / 2 * np.square(weights_RK).sum()
        slope_RK = rows_NR.T @ error_NK + PENALTY * weights_RK
        return float(value), np.concatenate([slope_RK.ravel(), error_NK.sum(axis=0)])

    start = np.zeros((rows_NR.shape[1] + 1) * num_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    weights_RK, bias_K = _unpacked(found.x, num_classes)
    return LinearHead(
        mean_D=mean_D, scale_D=scale_D, directions_DR=directions_DR, weights_RK=weights_RK, bias_K=bias_K
    )


def _unpacked(flat: Doubles, num_classes: int) -> tuple[Doubles, Doubles]:
    return flat[:-num_classes].reshape(-1, num_classes), flat[-num_classes:]


def _directions(standard_ND: Doubles) -> Doubles | None:
    """The LARGEST directions of most variance, [D, R]; None if there are no more features than that."""
    if standard_ND.shape[1] <= LARGEST:
        return None
    _, vectors_DD = np.linalg.eigh(standard_ND.T @ standard_ND)  # sorted upward
    directions_DR: Doubles = vectors_DD[:, -LARGEST:]
    return directions_DR


def _reduced(standard_ND: Doubles, directions_DR: Doubles | None) -> Doubles:
    return standard_ND if directions_DR is None else standard_ND @ directions_DR


def cross_fitted(
    features_ND: Doubles,
    labels_N: Ints,
    groups_N: Ints,
    *,
    beside: tuple[Doubles, Ints] | None = None,
    num_classes: int,
    seed: int,
    on_fold: Callable[[], object] = lambda: None,
) -> Doubles:
    """The probability of each class, [N, K], by a classifier that was fitted to rows of other groups.

    beside: features and labels that every classifier is fitted to, and that get no probabilities. on_fold: called after
    each of the FOLDS fits. There must be two groups, or rows `beside`.
    """
    folds_N = _folds(groups_N, seed)
    probabilities_NK = np.zeros((len(labels_N), num_classes))
    for fold in range(FOLDS):
        held_N = folds_N == fold
        if held_N.any():
            rows_ND, of_N = features_ND[~held_N], labels_N[~held_N]
            if beside is not None:
                rows_ND, of_N = np.concatenate([rows_ND, beside[0]]), np.concatenate([of_N, beside[1]])
            head = fit_head(rows_ND, of_N, num_classes=num_classes)
            probabilities_NK[held_N] = head.probabilities(features_ND[held_N])
        on_fold()
    return probabilities_NK


def _folds(groups_N: Ints, seed: int) -> Ints:
    """The number of each row's fold; whole groups are in one, and folds have about as many groups."""
    of_N = in_order(groups_N)
    order = keyed_generator("label folds", seed).permutation(int(of_N.max(initial=-1)) + 1)
    folds_N: Ints = order[of_N] % FOLDS
    return folds_N
