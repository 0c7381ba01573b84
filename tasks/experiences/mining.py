"""Mine the failures of a deployed DNN under a corruption, and split them into D_collect and D_fail.

Source: paper Sec. 5.1.3. The examples of a corruption pool all severities; by default the split is by image, so
that no image is on both sides at different severities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.environments import Environment
from tasks.errors import TooFewFailuresError
from tasks.experiences.pixels import RecomputedPixels, StackedPixels, joined
from tasks.keys import keyed_generator
from tasks.records import Failures, Ints, PixelRows, Pixels
from tasks.splits.digests import pixel_digests

# N failures, B images of a batch

COLLECT, FAIL, UNUSED = 0, 1, 2
Predict = Callable[[Pixels], Ints]


@dataclass(frozen=True, kw_only=True)
class MinedShard:
    """The failures of one shard; examples examined and classified correctly per severity; seconds per kind of work."""

    failures: Failures
    examined: dict[int, int]
    correct: dict[int, int]
    seconds: dict[str, float]


def mine(
    predict: Predict,
    environment: Environment,
    rows: Sequence[int] | Ints,
    *,
    seed: int,
    batch_size: int,
    keep: Literal["stored", "recomputed"] = "stored",
) -> MinedShard:
    """Read the environment's images of `rows` at every severity and keep those that `predict` gets wrong.

    The failures are ordered by severity, then as in `rows`, whatever `batch_size` is. keep: `stored` keeps the
    failures' pixels, `recomputed` only their digests. seed: recorded with these.
    """
    rows_B = np.asarray(rows, dtype=np.int64)
    parts: list[Failures] = []
    severities = environment.severities
    examined, correct = dict.fromkeys(severities, 0), dict.fromkeys(severities, 0)
    seconds = {"corrupt": 0.0, "classify": 0.0}
    for severity in severities:
        for start in range(0, len(rows_B), batch_size):
            batch = rows_B[start : start + batch_size]
            ids, labels = environment.image_ids_N[batch], environment.labels_N[batch]
            started = time.perf_counter()
            images = environment.images(batch, severity)
            corrupted = time.perf_counter()
            predicted = predict(images)
            seconds["corrupt"] += corrupted - started
            seconds["classify"] += time.perf_counter() - corrupted
            wrong = np.flatnonzero(predicted != labels)
            examined[severity] += len(batch)
            correct[severity] += len(batch) - len(wrong)
            failures = Failures(
                corruption=environment.name,
                image_ids_N=ids[wrong],
                severities_N=np.full(len(wrong), severity),
                labels_N=labels[wrong],
                predicted_N=predicted[wrong],
                images_NHWC=images[wrong],
            )
            parts.append(failures if keep == "stored" else without_pixels(failures, environment, seed=seed))
    return MinedShard(failures=concatenate(parts), examined=examined, correct=correct, seconds=seconds)


def without_pixels(failures: Failures, source: Environment, *, seed: int) -> Failures:
    """The same failures, with pixels that `source` recomputes when they are read."""
    height, width, channels = failures.images_NHWC.shape[1:]
    pixels = RecomputedPixels(
        corruption=failures.corruption,
        image_ids_N=failures.image_ids_N,
        severities_N=failures.severities_N,
        digests_N=pixel_digests(failures.images_NHWC[:]),
        image_shape=(height, width, channels),
        seed=seed,
        source=source,
    )
    return replace(failures, images_NHWC=pixels)


def concatenate(parts: Sequence[Failures], *, copy: bool = True) -> Failures:
    """The rows of all parts, in order; all must be of one corruption. Without `copy`, the pixels are not copied."""
    pixels = [p.images_NHWC for p in parts]
    recomputed = [p for p in pixels if isinstance(p, RecomputedPixels)]
    images: PixelRows = joined(recomputed) if recomputed else StackedPixels(pixels)
    return Failures(
        corruption=parts[0].corruption,
        image_ids_N=np.concatenate([p.image_ids_N for p in parts]),
        severities_N=np.concatenate([p.severities_N for p in parts]),
        labels_N=np.concatenate([p.labels_N for p in parts]),
        predicted_N=np.concatenate([p.predicted_N for p in parts]),
        images_NHWC=images[:] if copy and not recomputed else images,
    )


def split_failures(
    groups_N: Ints,
    labels_N: Ints,
    *,
    collect: int,
    rule: Literal["random", "stratified"],
    split_by: Literal["image", "example"],
    seed: int,
    environment: str,
    judges_N: NDArray[np.bool_] | None = None,
    at_most: bool = False,
) -> NDArray[np.int8]:
    """Each failure's side: COLLECT (exactly `collect` of them), FAIL, or UNUSED.

    groups_N: the image of each failure, or the group of images that it belongs to. judges_N: the failures of images
    that were set aside; they are D_fail, and D_collect is drawn from the others, of which the rest is UNUSED. Without
    it, whole images go to D_collect until it is full, and the other images' failures are D_fail. Failures of the last
    image that no longer fit are UNUSED, since its other failures are in D_collect. at_most: whether fewer than
    `collect` are enough (and, without judges_N, at most half of all). Raises TooFewFailuresError if there are too few
    failures, or if none is left for D_fail.
    """
    aside = np.zeros(len(labels_N), dtype=bool) if judges_N is None else judges_N
    candidates = np.flatnonzero(~aside)
    if at_most:
        collect = min(collect, len(candidates) if judges_N is not None else len(candidates) // 2)
    if at_most and judges_N is not None and (not len(candidates) or not aside.any()):
        raise TooFewFailuresError(
            f"{environment}: the deployed DNN fails on {len(candidates)} of its images to learn from and to select by, "
            f"and on {int(aside.sum())} of those that judge; a repair needs at least one of each. Give more "
            "photographs."
        )
    _check_enough(len(candidates), int(aside.sum()), collect, environment, judged=judges_N is not None)
    groups = groups_N[candidates] if split_by == "image" else candidates
    generator = keyed_generator("split", seed, environment)
    unique = np.unique(groups)
    rank_of_group = np.empty(len(unique), dtype=np.int64)
    rank_of_group[generator.permutation(len(unique))] = np.arange(len(unique))
    ranks = rank_of_group[np.searchsorted(unique, groups)]
    order = np.argsort(ranks, kind="stable")
    chosen = order[:collect] if rule == "random" else _stratified(order, labels_N[candidates], collect)
    sides = np.full(len(labels_N), FAIL, dtype=np.int8)
    if judges_N is None:
        sides[candidates[np.isin(groups, groups[chosen])]] = UNUSED
    else:
        sides[candidates] = UNUSED
    sides[candidates[chosen]] = COLLECT
    if not np.any(sides == FAIL):
        raise TooFewFailuresError(
            f"{environment}: all images that fail are needed to collect {collect} failures; none is left for D_fail. "
            "Set mining.collect lower."
        )
    return sides


def _check_enough(candidates: int, aside: int, collect: int, environment: str, *, judged: bool) -> None:
    """Raise TooFewFailuresError unless `collect` failures can be collected and D_fail has some."""
    more = "more images (data.max_train_images, data.max_test_images) or severities (mining.severities)"
    if judged and (candidates < max(collect, 1) or not aside):
        where = (
            "among its images to learn from"
            if candidates < max(collect, 1)
            else "among those set aside to judge"
        )
        less = f"Set mining.collect to at most {candidates}, or give" if candidates and aside else "Give"
        raise TooFewFailuresError(
            f"{environment}: the deployed DNN fails on {candidates} examples to learn from, and on {aside} of those "
            f"set aside to judge; that is too few {where} (mining.collect={collect}). {less} {more}."
        )
    if not judged and candidates <= collect:
        less = f"Set mining.collect to less than {candidates}, or mine" if candidates > 1 else "Mine"
        raise TooFewFailuresError(
            f"{environment}: the deployed DNN fails on {candidates} examples, and mining.collect={collect} needs "
            f"at least one more than it collects. {less} {more}."
        )


def _stratified(order: Ints, labels_N: Ints, collect: int) -> Ints:
    """Equally many of each class, in `order`; if a class runs out, the other classes fill its places."""
    labels = labels_N[order]
    place_in_class = np.empty(len(order), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place_in_class[members] = np.arange(len(members))
    return order[np.argsort(place_in_class, kind="stable")[:collect]]
