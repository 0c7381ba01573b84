"""Check the ranking of suspicious labels on features whose wrong labels are known."""

from __future__ import annotations

import numpy as np
import pytest

from metarepair.diagnosis.head import LARGEST, cross_fitted, fit_head
from metarepair.diagnosis.labels import STEPS, confidently_wrong, disagreement, ranked_labels
from tasks.errors import DataError

CLASSES = 3


def clouds(number: int, seed: int, *, spread: float = 1.0, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return features [N, D] around one centre for each class, and the classes [N]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=number)
    return 3.0 * np.eye(CLASSES, dim)[labels] + spread * generator.normal(size=(number, dim)), labels


def test_wrong_labels_come_first() -> None:
    features, labels = clouds(300, 0, spread=0.6)
    wrong = np.random.default_rng(1).permutation(300)[:15]
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % CLASSES
    ranked = ranked_labels(features, given, num_classes=CLASSES, seed=0)
    first = set(ranked.order()[:15].tolist())
    assert len(first & set(wrong.tolist())) >= 12
    assert (ranked.suggested_N[wrong] == labels[wrong]).mean() > 0.8
    assert ranked.wrong_N[wrong].mean() > 0.4, "a class's threshold is its mean, so about half are above it"
    assert np.delete(ranked.wrong_N, wrong).mean() < 0.05
    assert 5 <= ranked.doubted_N.sum() <= ranked.wrong_N.sum()
    assert ranked.neighbours_N[wrong].mean() > 2 * ranked.neighbours_N.mean()


def test_the_order_of_some_rows_is_that_of_all_without_the_others() -> None:
    features, labels = clouds(60, 2)
    ranked = ranked_labels(features, labels, num_classes=CLASSES, seed=0)
    rows = np.array([3, 50, 7, 21])
    assert ranked.order(rows).tolist() == [
        row for row in ranked.order().tolist() if row in set(rows.tolist())
    ]
    assert (np.diff(ranked.confidence_N[ranked.order()]) >= 0).all()


def test_an_image_has_no_say_about_its_own_group() -> None:
    """Copies of an image with the same wrong label would vouch for each other."""
    features, labels = clouds(90, 3, spread=0.3)
    copies = np.repeat(features[:1], 10, axis=0)
    rows, given = (
        np.concatenate([features, copies]),
        np.concatenate([labels, np.full(10, (labels[0] + 1) % CLASSES)]),
    )
    together = np.concatenate([np.arange(90), np.full(10, 90)])
    alone = ranked_labels(rows, given, num_classes=CLASSES, seed=0)
    grouped = ranked_labels(rows, given, num_classes=CLASSES, seed=0, groups_N=together)
    assert grouped.neighbours_N[90:].min() == 1.0
    assert alone.neighbours_N[90:].max() < 1.0
    assert grouped.confidence_N[90:].max() < alone.confidence_N[90:].min()


def test_clean_images_are_fitted_but_not_ranked() -> None:
    features, labels = clouds(12, 4)
    clean = clouds(300, 5)
    without = ranked_labels(features, labels, num_classes=CLASSES, seed=0)
    with_clean = ranked_labels(features, labels, num_classes=CLASSES, seed=0, clean=clean)
    assert len(with_clean.confidence_N) == 12
    assert with_clean.confidence_N.mean() > without.confidence_N.mean()


def test_neighbours_are_those_of_a_search_by_hand() -> None:
    features, labels = clouds(50, 6)
    groups = np.arange(50) // 2
    shares = disagreement(features, labels, groups)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row in (0, 17, 49):
        others = [other for other in range(50) if groups[other] != groups[row]]
        nearest = sorted(others, key=lambda other: -float(unit[row] @ unit[other]))[:20]
        assert shares[row] == pytest.approx(np.mean(labels[nearest] != labels[row]))


def test_confident_learning_counts_the_off_diagonal() -> None:
    """Northcutt et al.: an image is wrong if it reaches another class's threshold, with the higher probability."""
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 1, 1])  # thresholds: 0.6 and 0.7
    assert confidently_wrong(probabilities, labels).tolist() == [False, False, True, False, False]


def test_a_class_without_labels_makes_no_label_wrong() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.3, 0.2, 0.5]])
    assert not confidently_wrong(probabilities, np.array([0, 0])).any()


def test_the_head_finds_the_minimum_of_its_loss() -> None:
    """The gradient by finite differences is zero there, and another penalty has another minimum."""
    features, labels = clouds(80, 7, dim=3)
    head = fit_head(features, labels, num_classes=CLASSES)
    standard = (features - head.mean_D) / head.scale_D

    def loss(weights: np.ndarray, bias: np.ndarray) -> float:
        logits = standard @ weights + bias
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(80), labels].mean() + 0.05 * np.square(weights).sum())

    least = loss(head.weights_RK, head.bias_K)
    for seed in range(20):
        step = 1e-2 * np.random.default_rng(seed).normal(size=(4, CLASSES))
        assert loss(head.weights_RK + step[:3], head.bias_K + step[3]) > least


def test_each_row_is_predicted_by_a_head_that_was_not_fitted_to_its_group() -> None:
    """A row whose features no other has is predicted as if they were not there."""
    features, labels = clouds(40, 8)
    features = np.concatenate([features, np.zeros((40, 1))], axis=1)
    features[5, -1] = 50.0
    groups = np.arange(40)
    before = cross_fitted(features, labels, groups, num_classes=CLASSES, seed=0)[5]
    labels[5] = (labels[5] + 1) % CLASSES
    after = cross_fitted(features, labels, groups, num_classes=CLASSES, seed=0)[5]
    assert before.tolist() == after.tolist()


def test_more_features_than_are_used_leave_the_order_of_wrong_labels() -> None:
    features, labels = clouds(120, 9, spread=0.3)
    features = features @ np.random.default_rng(0).normal(size=(8, LARGEST + 40))
    given = labels.copy()
    given[:6] = (given[:6] + 1) % CLASSES
    ranked = ranked_labels(features, given, num_classes=CLASSES, seed=0)
    assert set(ranked.order()[:6].tolist()) == set(range(6))


def test_every_step_is_told() -> None:
    features, labels = clouds(20, 10)
    told: list[None] = []
    ranked_labels(features, labels, num_classes=CLASSES, seed=0, on_step=lambda: told.append(None))
    assert len(told) == STEPS


def test_one_group_alone_cannot_be_ranked() -> None:
    features, labels = clouds(5, 11)
    with pytest.raises(DataError, match="at least two groups"):
        ranked_labels(features, labels, num_classes=CLASSES, seed=0, groups_N=np.zeros(5, np.int64))
    with pytest.raises(DataError, match="not finite"):
        ranked_labels(features * np.nan, labels, num_classes=CLASSES, seed=0)
