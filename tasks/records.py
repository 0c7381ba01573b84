"""The records that pass from stage to stage, with their Arrow schemas. Start reading the code here.

    images -> Failures -> Experience (collect, fail) -> FidScore -> Task -> RepairResult

Shape letters throughout the code: N examples, B images in a batch, H W C pixels, D features, S tasks.
Source: paper Sec. 3 and 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]

# Columns of tables and keys of JSON files that hold what was measured: they differ between equal runs. `memory` is a
# sentence among the facts of meta-training, which may say how much memory was free.
MEASURED = (
    "core_seconds",
    "episodes_per_s",
    "images_per_s",
    "memory",
    "memory_bytes",
    "seconds",
    "tasks_per_s",
)


class PixelRows(Protocol):
    """Pixels [N, H, W, C] uint8 that are read by row: an array, a memory map, or images computed on demand."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any:
        """The pixels of the given rows, as a copy or a view."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SelectedPixels:
    """Some rows of other pixels, which are read when they are used."""

    pixels: PixelRows
    rows_N: Ints

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.pixels.shape[1:])

    def __getitem__(self, rows: Any) -> Any:
        return self.pixels[self.rows_N[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        pixels: Pixels = np.asarray(self[:], dtype=dtype)
        return pixels


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Corrupted examples of one environment that the deployed DNN misclassifies, as columns.

    One row is one failure; the same image may fail at several severities. `len(failures)` is N.

    Attributes:
        corruption: published name of the corruption.
        image_ids_N: int64 [N], the position of each image in its published split.
        severities_N: int64 [N], 1 to 5.
        labels_N: int64 [N], true classes.
        predicted_N: int64 [N], the classes that the deployed DNN predicted.
        images_NHWC: the corrupted pixels, uint8 [N, H, W, C]: an array, a memory map, or pixels that are
            recomputed from the clean images when they are read. Images that a caller of `repair` gives as float32
            are the DNN's own input, and are kept as they are.

    Source: paper Sec. 4.1.
    """

    corruption: str
    image_ids_N: Ints
    severities_N: Ints
    labels_N: Ints
    predicted_N: Ints
    images_NHWC: PixelRows

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: Ints) -> Failures:
        """The given rows, in the given order.

        Args:
            rows: int64 [B], row numbers; a row may occur more than once.

        Returns:
            New failures with B rows. Their pixels are a copy in memory.
        """
        return replace(self.view(rows), images_NHWC=self.images_NHWC[rows])

    def view(self, rows: Ints) -> Failures:
        """The given rows, in the given order.

        Args:
            rows: int64 [B], row numbers; a row may occur more than once.

        Returns:
            New failures with B rows. Their pixels are read when they are used.
        """
        return Failures(
            corruption=self.corruption,
            image_ids_N=self.image_ids_N[rows],
            severities_N=self.severities_N[rows],
            labels_N=self.labels_N[rows],
            predicted_N=self.predicted_N[rows],
            images_NHWC=SelectedPixels(pixels=self.images_NHWC, rows_N=rows),
        )


def failure_schema(image_shape: tuple[int, ...], *, stored: bool) -> pa.Schema:
    """The Arrow schema of a file of failures.

    Args:
        image_shape: (H, W, C) in pixels.
        stored: whether the file has the pixels; if not, it has their digests.

    Returns:
        The index columns `image_id` int64, `severity` int8, `label` int32 and `predicted` int32; then `pixels`, H·W·C
        bytes in row-major order, or `pixels_digest` uint64. The metadata has `image_shape` as "H,W,C".
    """
    height, width, channels = image_shape
    pixels = pa.field("pixels", pa.binary(height * width * channels), nullable=False)
    digest = pa.field("pixels_digest", pa.uint64(), nullable=False)
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("severity", pa.int8(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("predicted", pa.int32(), nullable=False),
            pixels if stored else digest,
        ],
        metadata={"image_shape": f"{height},{width},{channels}"},
    )


@dataclass(frozen=True, kw_only=True)
class Experience:
    """One repairing experience: a corruption with its D_collect and D_fail.

    Attributes:
        corruption: published name of the corruption.
        collect: D_collect, the failures that supports are drawn from.
        fail: D_fail, the failures that queries are drawn from.

    Source: paper Sec. 4.1.
    """

    corruption: str
    collect: Failures
    fail: Failures


@dataclass(frozen=True, kw_only=True)
class FidScore:
    """The Fréchet distance q between the collected examples of an experience and of a target.

    Attributes:
        experience: name of the experience.
        target: name of the target.
        distance: q ≥ 0, in squared feature units of the extractor.
        extractor: name of the feature extractor.
        num_experience: number of the experience's examples.
        num_target: number of the target's examples.
        low: lower end of the 95 % bootstrap interval; `None` if not requested.
        high: upper end of the 95 % bootstrap interval; `None` if not requested.
        limit: FID∞, the distance extrapolated to infinitely many examples; `None` if not requested.
        limit_error: standard error of `limit`; `None` if not requested.

    Source: paper Eq. 7.
    """

    experience: str
    target: str
    distance: float
    extractor: str
    num_experience: int
    num_target: int
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    limit_error: float | None = None


FID_SCHEMA = pa.schema(
    [
        pa.field("experience", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("distance", pa.float64(), nullable=False),
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("num_experience", pa.int64(), nullable=False),
        pa.field("num_target", pa.int64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("limit", pa.float64()),
        pa.field("limit_error", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A corruption-level, semantic-cover, confidence-aware task. It has row numbers, not pixels.

    Attributes:
        experience: name of the experience.
        episode: number of the episode, from 0.
        slot: position of the task in its episode, from 0.
        support_rows: int64, rows of the experience's D_collect.
        query_rows: int64, rows of the experience's D_fail, ascending.
        probability: the probability with which the experience was drawn (its confidence).

    Source: paper Sec. 4.2, "Task Distribution".
    """

    experience: str
    episode: int
    slot: int
    support_rows: Ints
    query_rows: Ints
    probability: float


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """The evaluation of one repaired DNN. Accuracies and rates are fractions in 0..1.

    Attributes:
        method: name of the repair method.
        target: name of the target.
        seed: seed of the repair.
        d_fail: accuracy of the saved model on all of the target's D_fail.
        d_fail_paper: the paper's mean acc_s over M × S tasks (Algorithm 1, line 23); `None` for a method without tasks.
        d_fail_episodes_mean: mean over episodes of the accuracy on all of D_fail at an episode's end; `None` for a
            method without tasks.
        d_fail_episodes_sd: standard deviation of these accuracies (n − 1); `None` for fewer than two episodes.
        validation: accuracy on the validation part of D_collect.
        corrupted: mean over severities of the accuracy on the test split under the target's corruption.
        corrupted_by_severity: these accuracies by severity ("1" to "5").
        clean: accuracy on the clean test split.
        clean_before: the deployed DNN's accuracy on the clean test split.
        other_corruptions: accuracy under other corruptions by name, pooled over severities.
        repair_rate: fraction of D_fail that is now classified correctly; equals `d_fail`.
        break_rate: fraction of the clean test images classified correctly before that are now misclassified.
        break_rate_corrupted: the same for the test images under the target's corruption, pooled over severities.
        calibration_error: expected calibration error on the corrupted test images, pooled over severities.
        seconds: duration of the repair in seconds.
        core_seconds: processor time of the repair in seconds, over all threads.
        forward_images: number of images that went through the DNN for any purpose, once for each pass.
        backward_images: number of images whose logits were differentiated, once for each derivative.
        images_seen: number of images that went through the DNN to learn from.
        gradient_steps: number of optimizer steps that the repair took.
        memory_bytes: peak memory of the repair's process in bytes; `None` if not measured.
        notes: remarks of the method, one sentence each.
        selection: how the DNN was chosen inside limits (`metarepair.repairs.limits.Selection`); `None` without limits.

    Source: paper Sec. 5 and supplements.
    """

    method: str
    target: str
    seed: int
    d_fail: float
    d_fail_paper: float | None
    d_fail_episodes_mean: float | None
    d_fail_episodes_sd: float | None
    validation: float
    corrupted: float
    corrupted_by_severity: dict[str, float]
    clean: float
    clean_before: float
    other_corruptions: dict[str, float]
    repair_rate: float
    break_rate: float
    break_rate_corrupted: float
    calibration_error: float
    seconds: float
    core_seconds: float
    forward_images: int
    backward_images: int
    images_seen: int
    gradient_steps: int
    memory_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
    selection: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file, without `selection` if there are no limits."""
        values = asdict(self)
        if self.selection is None:
            del values["selection"]
        return values
