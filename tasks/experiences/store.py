"""The experience store: join the mined shards of an environment, and read its D_collect and D_fail as memory maps.

An environment is a folder, on a local disk or in an object store:
    collect.arrow    D_collect, one row per failure
    fail.arrow       D_fail, in its own file: code that must not read it is not given its path
    manifest.json    written last, with counts, checksums and versions
While an environment is mined, `parts/` holds one Arrow file per shard; parts are written atomically. Several processes
may mine one environment: a shard's bytes do not depend on the writer, and a later writer finds the shard finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from tasks.environments import Environment
from tasks.errors import DataError
from tasks.experiences.failure_file import read_failures, read_with_facts, write_failures
from tasks.experiences.mining import COLLECT, FAIL, UNUSED, MinedShard, concatenate
from tasks.experiences.pixels import RecomputedPixels
from tasks.records import Failures
from tasks.storage.manifest import Manifest, check_done, write_manifest
from tasks.storage.paths import Place, remove_tree

Side = Literal["collect", "fail"]


def write_part(path: Place, mined: MinedShard) -> None:
    """Write one shard's failures with its counts and seconds."""
    facts = {"examined": mined.examined, "correct": mined.correct, "seconds": mined.seconds}
    write_failures(path, mined.failures, metadata=facts)


def read_part(path: Place) -> MinedShard:
    """Read what `write_part` wrote. Raises DataError if it is damaged."""
    failures, facts = read_with_facts(path)
    try:
        by_severity = {
            key: {int(s): int(n) for s, n in facts[key].items()} for key in ("examined", "correct")
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} lacks the number of examples per severity that a part of a mined environment has. Mine it again "
            "with --restart."
        ) from error
    return MinedShard(failures=failures, seconds=facts.get("seconds", {}), **by_severity)


def finish_environment(
    folder: Place,
    parts: Sequence[Place],
    sides_of: Callable[[Failures], np.ndarray],
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    num_classes: int,
    class_names: Sequence[str] = (),
) -> Manifest:
    """Join the parts in shard order, split them, write both sides and the manifest, and delete the parts.

    class_names: recorded for readers who do not have the data set.
    If another process has finished the same environment in the meantime, returns that manifest.
    """
    try:
        mined = [read_part(path) for path in parts]
        manifest = _finish(folder, mined, sides_of, stage, config, inputs, num_classes, class_names)
    except (DataError, FileNotFoundError):
        done = check_done(folder, stage=stage, config=config, inputs=inputs)
        if done is None:
            raise
        manifest = done
    remove_tree(folder / "parts")
    return manifest


def _finish(
    folder: Place,
    mined: Sequence[MinedShard],
    sides_of: Callable[[Failures], np.ndarray],
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    num_classes: int,
    class_names: Sequence[str],
) -> Manifest:
    failures = concatenate([m.failures for m in mined], copy=False)
    outside = np.flatnonzero(failures.labels_N >= num_classes)
    if len(outside):
        raise DataError(f"{folder}: {len(outside)} failures have labels outside the {num_classes} classes.")
    sides_N = sides_of(failures)
    for side, name in ((COLLECT, "collect"), (FAIL, "fail")):
        write_failures(folder / f"{name}.arrow", failures, rows=np.flatnonzero(sides_N == side))
    counts = np.bincount(failures.labels_N[sides_N == COLLECT], minlength=num_classes)
    return write_manifest(
        folder,
        stage=stage,
        config=config,
        inputs=inputs,
        files=["collect.arrow", "fail.arrow"],
        rows={
            "collect": int((sides_N == COLLECT).sum()),
            "fail": int((sides_N == FAIL).sum()),
            "unused": int((sides_N == UNUSED).sum()),
        },
        facts={
            "examined": _sum([m.examined for m in mined]),
            "correct": _sum([m.correct for m in mined]),
            # Summed over all workers: seconds spent corrupting and classifying.
            "seconds": {k: round(sum(m.seconds[k] for m in mined), 3) for k in mined[0].seconds},
            "collected_per_class": counts.tolist(),
            "classes_without_failures": np.flatnonzero(counts == 0).tolist(),
            "class_names": list(class_names),
        },
    )


def _sum(counts: Sequence[Mapping[int, int]]) -> dict[str, int]:
    return {str(severity): sum(c[severity] for c in counts) for severity in counts[0]}


def open_side(folder: Place, side: Side, manifest: Manifest, source: Environment | None = None) -> Failures:
    """Open one side of a finished environment. Raises DataError if it does not match its manifest.

    Pixels are a memory map. If the store keeps only digests, `source`, the environment that was mined, recomputes
    them.
    """
    name = f"{side}.arrow"
    failures = read_failures(folder / name)
    if len(failures) != manifest.rows[side]:
        raise DataError(
            f"{folder / name} has {len(failures)} rows, its manifest promises {manifest.rows[side]}. "
            "Mine it again with --restart."
        )
    if source is not None and isinstance(failures.images_NHWC, RecomputedPixels):
        return replace(failures, images_NHWC=failures.images_NHWC.read_from(source))
    return failures
