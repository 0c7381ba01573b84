"""Turns the distances of all pairs into each target's confidence in its experiences, and writes both as tables.

Source: paper Eq. 7 and 8, Fig. 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metarepair.config.run import Config, ExperienceConfig
from metarepair.runs.layout import Run
from tasks.environments import category_of
from tasks.errors import ConfigError, DataError, StageError
from tasks.records import FID_SCHEMA, FidScore
from tasks.sampling.confidence import (
    Confidence,
    alpha_for_effective_number,
    choose_experiences,
    confidence,
)
from tasks.storage.paths import Place, read_table, write_table

SCORE_AGAIN = "Score again: metarepair score --config FILE --restart."
TARGET_SUFFIX = " (target)"
GUIDED = (1, 3, 5)  # the effective numbers of experiences that guidance covers
ONE = 1.05  # used in place of 1, which no finite α reaches


def scores_of(
    matrix: NDArray[np.float64],
    experiences: Sequence[str],
    targets: Sequence[str],
    *,
    extractor: str,
    rows: Sequence[int],
) -> list[FidScore]:
    """The scores of all (experience, target) pairs of the matrix, whose rows are the experiences, then the targets.

    rows: the number of examples of each experience and target.
    """
    return [
        FidScore(
            experience=experience,
            target=target,
            distance=float(matrix[i, len(experiences) + j]),
            extractor=extractor,
            num_experience=rows[i],
            num_target=rows[len(experiences) + j],
        )
        for j, target in enumerate(targets)
        for i, experience in enumerate(experiences)
    ]


def confidence_of(scores: Sequence[FidScore], target: str, settings: ExperienceConfig) -> Confidence:
    """The experiences that a target learns from, and their probabilities (Eq. 8)."""
    distances = {s.experience: s.distance for s in scores if s.target == target and s.experience != target}
    chosen = choose_experiences(
        distances,
        choice=settings.choice,
        top_k=settings.top_k,
        names=settings.names,
        target=target,
        category_of=category_of,
    )
    return confidence(
        {name: distances[name] for name in chosen},
        rule=settings.rule,
        alpha=settings.alpha,
        beta=settings.beta,
    )


def shared_confidence(run: Run, config: Config) -> Confidence:
    """The confidence for all targets of a run: the mean of theirs, over the experiences that are no targets.

    Without targets, as of a kit, all experiences are drawn alike. Raises StageError if the targets are not scored,
    ConfigError if none of them has confidence in any of these.
    """
    if not config.targets:
        return confidence(
            dict.fromkeys(config.mining.experiences, 0.0), rule="uniform", alpha=None, beta=None
        )
    found = [read_confidence(run, target) for target in config.targets]
    names = config.shared_experiences
    p_TK = np.array([[one.as_dict().get(name, 0.0) for name in names] for one in found])
    sum_K = p_TK.sum(0)
    if not sum_K.any():
        raise ConfigError(
            "what serves all targets learns from the experiences that these have confidence in (p of Eq. 8), and all "
            "of them are targets themselves. Add experiences to mining.experiences that are no targets."
        )
    drawn = np.flatnonzero(sum_K)
    return Confidence(
        names=tuple(names[i] for i in drawn),
        probabilities_K=sum_K[drawn] / sum_K.sum(),
        rule=config.experiences.rule,
        alpha=found[0].alpha,
        beta=found[0].beta,
    )


def write_scores(
    folder: Place,
    scores: Sequence[FidScore],
    matrix: NDArray[np.float64],
    names: Sequence[str],
    confidences: Mapping[str, Confidence],
) -> list[str]:
    """Write fid.parquet, matrix.parquet, confidence.parquet, confidence.csv and guidance.csv; return their names."""
    write_table(folder / "fid.parquet", pa.Table.from_pylist([asdict(s) for s in scores], schema=FID_SCHEMA))
    columns = {"environment": pa.array(list(names))} | {
        n: pa.array(matrix[:, i]) for i, n in enumerate(names)
    }
    write_table(folder / "matrix.parquet", pa.table(columns))
    distance = {(s.experience, s.target): s.distance for s in scores}
    rows = [
        {
            "target": target,
            "experience": name,
            "distance": distance[name, target],
            "probability": float(p),
            "category": category_of(name),
            "effective_number": found.effective_number,
            "rule": found.rule,
            "alpha": float(found.alpha),
            "beta": float(found.beta),
            "extractor": scores[0].extractor,
        }
        for target, found in confidences.items()
        for name, p in zip(found.names, found.probabilities_K, strict=True)
    ]
    table = pa.Table.from_pylist(rows)
    write_table(folder / "confidence.parquet", table)
    write_table(folder / "confidence.csv", table)
    guidance = [
        {"target": target, "effective_number": g.number, "hinge_alpha": g.alpha, "cutoff_beta": g.beta}
        for target, found in confidences.items()
        for g in guides({name: distance[name, target] for name in found.names})
    ]
    write_table(folder / "guidance.csv", pa.Table.from_pylist(guidance))
    return ["fid.parquet", "matrix.parquet", "confidence.parquet", "confidence.csv", "guidance.csv"]


def read_confidence(run: Run, target: str) -> Confidence:
    """Read a target's confidence. Raises StageError if it was not scored, DataError if the file is damaged."""
    path = run.score / "confidence.parquet"
    if not path.exists():
        raise StageError(f"{path} does not exist. Score first: metarepair score --config …")
    try:
        rows = [r for r in read_table(path, SCORE_AGAIN).to_pylist() if r["target"] == target]
    except KeyError as error:
        raise DataError(f"{path} is damaged: it has no column {error}. {SCORE_AGAIN}") from error
    if not rows:
        raise StageError(
            f"{path} has no target {target!r}. Add it to targets and score again: metarepair score --config …"
        )
    return Confidence(
        names=tuple(r["experience"] for r in rows),
        probabilities_K=np.array([r["probability"] for r in rows]),
        rule=rows[0]["rule"],
        alpha=rows[0]["alpha"],
        beta=rows[0]["beta"],
    )


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Settings that make the effective number of experiences equal to `number`.

    alpha: α for the rule `hinge`, with β the smallest distance; None if no α does it. For a number of 1 it is the α
    that gives 1.05, since only α → ∞ gives 1. beta: β for the rule `cutoff`, with α = 0.
    """

    number: int
    alpha: float | None
    beta: float


def guides(distances: Mapping[str, float], numbers: Sequence[int] = GUIDED) -> list[Guide]:
    """Guidance on α and β for each effective number of experiences in `numbers`, as far as there are that many."""
    ordered = sorted(distances.values())
    guidance = []
    for number in (n for n in numbers if n <= len(ordered)):
        try:
            alpha = alpha_for_effective_number(distances, max(float(number), ONE))
        except ConfigError:  # several experiences have the smallest distance
            alpha = None
        guidance.append(Guide(number=number, alpha=alpha, beta=ordered[number - 1]))
    return guidance


def describe_confidence(target: str, found: Confidence, scores: Sequence[FidScore]) -> str:
    """Lines for a person: a target's experiences, nearest first, and guidance on α and β."""
    of = {s.experience: s for s in scores if s.target == target}
    order = sorted(
        zip(found.names, found.probabilities_K, strict=True), key=lambda pair: of[pair[0]].distance
    )
    lines = [
        f"{target}: rule {found.rule}, alpha {found.alpha:.4g}, beta {found.beta:.4g}, "
        f"effective number of experiences {found.effective_number:.2f} of {len(order)}"
    ]
    lines += [f"  {name:20s} distance {_distance(of[name])}   p {p:.3f}" for name, p in order]
    for guide in guides({name: of[name].distance for name in found.names}):
        many = "1 effective experience" if guide.number == 1 else f"{guide.number} effective experiences"
        alpha = "no alpha for hinge" if guide.alpha is None else f"hinge with alpha {guide.alpha:.4g}"
        lines.append(f"  for {many}: {alpha}; or cutoff with alpha 0 and beta {guide.beta:.6g}")
    return "\n".join(lines)


def _distance(score: FidScore) -> str:
    text = f"{score.distance:10.4f}"
    if score.low is not None and score.high is not None:
        text += f" ({score.low:.2f} to {score.high:.2f})"
    if score.limit is not None and score.limit_error is not None:
        text += f", extrapolated {score.limit:.2f} ± {score.limit_error:.2f}"
    return text
