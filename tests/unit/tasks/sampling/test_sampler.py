"""Check that tasks cover every class, are drawn by confidence, and depend only on their key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.experiences.mining import COLLECT, FAIL, split_failures
from tasks.records import Experience, Failures, Task
from tasks.sampling.confidence import Confidence
from tasks.sampling.sampler import sample_task, semantic_cover, split_validation

P = (0.6, 0.3, 0.1)
NAMES = ("snow", "fog", "frost")


def failures(corruption: str, image_ids: np.ndarray) -> Failures:
    count = len(image_ids)
    return Failures(
        corruption=corruption,
        image_ids_N=image_ids,
        severities_N=np.ones(count, np.int64),
        labels_N=image_ids % 5,
        predicted_N=(image_ids + 1) % 5,
        images_NHWC=np.zeros((count, 2, 2, 3), np.uint8),
    )


def experience(name: str) -> Experience:
    ids = np.repeat(np.arange(40), 3)
    sides = split_failures(
        ids, ids % 5, collect=50, rule="random", split_by="image", seed=0, environment=name
    )
    return Experience(
        corruption=name,
        collect=failures(name, ids[sides == COLLECT]),
        fail=failures(name, ids[sides == FAIL]),
    )


EXPERIENCES = {name: experience(name) for name in NAMES}
CONFIDENCE = Confidence(names=NAMES, probabilities_K=np.array(P), rule="softmax", alpha=1.0, beta=0.0)


def draw(episode: int = 0, slot: int = 0, **changes: Any) -> Task:
    settings: dict[str, Any] = {"seed": 0, "shots": 2, "query_size": 12}
    return sample_task(EXPERIENCES, CONFIDENCE, episode=episode, slot=slot, **(settings | changes))


def assert_same(a: Task, b: Task) -> None:
    assert (a.experience, a.probability) == (b.experience, b.probability)
    np.testing.assert_array_equal(a.support_rows, b.support_rows)
    np.testing.assert_array_equal(a.query_rows, b.query_rows)


@pytest.mark.parametrize("shots", [1, 3, 10])
def test_a_support_has_the_same_number_of_shots_of_every_class_that_has_failures(shots: int) -> None:
    labels = np.array([0] * 50 + [3] * 10 + [7] * 2)
    rows = semantic_cover(labels, shots=shots, generator=np.random.default_rng(0))
    assert np.bincount(labels[rows], minlength=10).tolist() == [shots, 0, 0, shots, 0, 0, 0, shots, 0, 0]


def test_examples_are_repeated_only_in_a_class_with_too_few() -> None:
    labels = np.array([0] * 50 + [3] * 10 + [7] * 2)
    rows = semantic_cover(labels, shots=10, generator=np.random.default_rng(0))
    for label, different in ((0, 10), (3, 10), (7, 2)):
        assert len(np.unique(rows[labels[rows] == label])) == different


def test_a_support_is_shuffled_over_the_classes() -> None:
    labels = np.repeat(np.arange(5), 20)
    drawn = labels[semantic_cover(labels, shots=10, generator=np.random.default_rng(0))]
    assert (np.diff(drawn) < 0).any()


def test_a_support_from_an_empty_d_collect_is_refused() -> None:
    with pytest.raises(DataError, match="empty D_collect"):
        semantic_cover(np.array([], np.int64), shots=1, generator=np.random.default_rng(0))


def test_support_comes_from_d_collect_and_query_from_d_fail_and_no_image_is_in_both() -> None:
    for slot in range(30):
        task = draw(slot=slot)
        of = EXPERIENCES[task.experience]
        support, query = of.collect.take(task.support_rows), of.fail.take(task.query_rows)
        assert np.bincount(support.labels_N).tolist() == [2] * 5
        assert len(np.unique(task.query_rows)) == len(query) == 12
        assert not set(support.image_ids_N) & set(query.image_ids_N)


def test_a_query_is_all_of_d_fail_if_that_is_smaller() -> None:
    task = draw(query_size=10_000)
    np.testing.assert_array_equal(task.query_rows, np.arange(len(EXPERIENCES[task.experience].fail)))


def test_the_same_key_draws_the_same_task_in_any_order_of_slots() -> None:
    forwards = {slot: draw(slot=slot) for slot in range(8)}
    backwards = {slot: draw(slot=slot) for slot in reversed(range(8))}
    for slot in range(8):
        assert_same(forwards[slot], backwards[slot])


@pytest.mark.parametrize("other", [{"seed": 1}, {"episode": 1}, {"slot": 1}])
def test_another_seed_episode_or_slot_draws_another_task(other: dict[str, int]) -> None:
    a, b = draw(), draw(**other)
    assert a.query_rows.tolist() != b.query_rows.tolist()
    assert a.support_rows.tolist() != b.support_rows.tolist()


def test_all_tasks_of_a_training_are_different() -> None:
    tasks = [draw(episode, slot) for episode in range(20) for slot in range(4)]
    assert len({(t.experience, *t.support_rows, *t.query_rows) for t in tasks}) == 80


def test_experiences_are_drawn_with_the_probability_of_their_confidence() -> None:
    tasks = [draw(episode, slot, shots=1, query_size=1) for episode in range(500) for slot in range(4)]
    for name, p in zip(NAMES, P, strict=True):
        share = np.mean([t.experience == name for t in tasks])
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 2000) ** 0.5)
        assert {t.probability for t in tasks if t.experience == name} == {p}


@pytest.mark.parametrize(("fraction", "images"), [(0.2, 8), (0.5, 20), (0.001, 1), (0.999, 39)])
def test_validation_is_a_fraction_of_the_images_and_disjoint_from_the_rest(
    fraction: float, images: int
) -> None:
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3))
    learn, validation = split_validation(ids, fraction=fraction, seed=0, target="fog")
    assert len(np.unique(ids[validation])) == images
    assert not set(ids[learn]) & set(ids[validation])
    assert sorted([*learn, *validation]) == list(range(120))


def test_validation_is_keyed_by_seed_and_target() -> None:
    def validation(seed: int, target: str) -> list[int]:
        return split_validation(np.arange(100), fraction=0.2, seed=seed, target=target)[1].tolist()

    assert validation(0, "fog") == validation(0, "fog")
    assert len({tuple(validation(s, t)) for s in (0, 1) for t in ("fog", "snow")}) == 4


def test_failures_of_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"fog: D_collect has failures of 1 image.*mining\.collect"):
        split_validation(np.array([3, 3, 3]), fraction=0.2, seed=0, target="fog")
