"""The records that the stages hand on, with their Arrow schemas. Page one of the code.

    images -> Failure rows -> Experience (collect, fail) -> FidScore -> Task -> RepairResult

Shape letters everywhere: N examples, B images in a batch, H W C pixels, D features, S tasks.
Source: paper Sec. 3 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class PixelRows(Protocol):
    """Pixels [N, H, W, C] uint8 by rows: an array, a memory map, or images that are made when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any:
        """A copy, or a view, of the given rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Corrupted examples of one environment that the deployed DNN classifies wrongly, as columns.

    `images_NHWC_u8` may be a memory map, or be made again from the clean images row by row. One row is one failure;
    the same image may fail at several severities.
    """

    corruption: str
    image_ids_N: Ints
    severities_N: Ints
    labels_N: Ints
    predicted_N: Ints
    images_NHWC_u8: PixelRows

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows: Ints) -> Failures:
        """The given rows, in the given order (pixels are copied)."""
        return Failures(
            corruption=self.corruption,
            image_ids_N=self.image_ids_N[rows],
            severities_N=self.severities_N[rows],
            labels_N=self.labels_N[rows],
            predicted_N=self.predicted_N[rows],
            images_NHWC_u8=self.images_NHWC_u8[rows],
        )


def failure_schema(image_shape: tuple[int, ...], *, stored: bool) -> pa.Schema:
    """Arrow schema of a failure: index columns, and its raw pixels [H, W, C] uint8, row-major, or their digest."""
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
    """One repairing experience: a corruption with its D_collect and D_fail (paper Sec. 4.1)."""

    corruption: str
    collect: Failures
    fail: Failures


@dataclass(frozen=True, kw_only=True)
class FidScore:
    """Fréchet distance q of an experience's and a target's collected examples (paper Eq. 7).

    low, high: ends of its 95 % bootstrap interval. limit, limit_error: FID∞, the distance extrapolated to
    infinitely many examples, and its standard error. None where they were not asked for.
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
    """A corruption-level, semantic-cover, confidence-aware task (paper Sec. 4.2, "Task Distribution").

    Row numbers, not pixels: `support_rows` into the experience's D_collect, `query_rows` into its D_fail.
    `probability` is the confidence with which the experience was drawn.
    """

    experience: str
    episode: int
    slot: int
    support_rows: Ints
    query_rows: Ints
    probability: float


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """How one repaired DNN does. Accuracies and rates are fractions (reading: Sec. 5 and supplements).

    `d_fail_paper` is the paper's mean acc_s over M × S tasks (Algorithm 1, line 23), None for a method
    that has no tasks; `d_fail` the accuracy of the saved model on all of D_fail. `memory_bytes` is the most that the
    repair's process held, None where it was not measured.
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
    images_seen: int
    gradient_steps: int
    memory_bytes: int | None = None
    notes: tuple[str, ...] = field(default=())
