"""Measure whether adapting batch-norm statistics alone repairs the DNN, as the method `bn_adapt` does.

The statistics are those of failures to learn from. What that changes is measured on photographs and clean images that
select. The DNN itself stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from metarepair.data.clean_images import CleanImages
from metarepair.diagnosis.measures import Share, share_of
from metarepair.diagnosis.seen import Answers, Seen, answers
from metarepair.methods.bn_adapt import adapt_statistics
from metarepair.models.build import DeployedModel
from metarepair.models.wrappers import copied
from tasks.records import Ints

Verdict = Literal["none to adapt", "too few", "enough", "helps", "no help"]
LEVEL = 0.05  # of the sign test
ENOUGH = 0.5  # share of the way from accuracy on the photographs to accuracy on clean images


@dataclass(frozen=True, kw_only=True)
class NormsAlone:
    """What adapted batch-norm statistics change on images that select.

    Attributes:
        verdict: `none to adapt`: the DNN stores no batch-norm statistics; `too few`: no failures to adapt to, or no
            photographs to select by; `enough`: closes at least half of the gap to clean images; `helps`: better, but
            not enough; `no help`: not better beyond chance (sign test on fixed and broken photographs, 5%).
        adapted_to: number of failures whose statistics were taken.
        before, after: accuracy on the photographs that select; None if there are none.
        fixed, broken: photographs that select that become right, and wrong.
        clean_before, clean_after: accuracy on the clean images that select.
    """

    verdict: Verdict
    adapted_to: int = 0
    before: Share | None = None
    after: Share | None = None
    fixed: int = 0
    broken: int = 0
    clean_before: Share | None = None
    clean_after: Share | None = None


def norms_alone(
    deployed: DeployedModel, seen: Seen, before: Answers, clean: CleanImages, clean_before: Answers
) -> NormsAlone:
    """Adapt a copy of the DNN, and measure it. before: answers to the photographs; clean_before: to `clean`."""
    right_N, selects = before.right(seen.labels_N), np.flatnonzero(seen.selects_N)
    failures = np.flatnonzero(~right_N & ~seen.selects_N)
    if not len(failures) or not len(selects):
        return NormsAlone(verdict="too few")
    adapted = replace(deployed, module=copied(deployed.module))
    if not adapt_statistics(adapted, np.asarray(seen.images_NHWC[failures])):
        return NormsAlone(verdict="none to adapt")
    after_N = answers(
        adapted, np.asarray(seen.images_NHWC[selects]), "adapted batch norms, photographs"
    ).right(seen.labels_N[selects])
    clean_after = answers(adapted, clean.images_NHWC, "adapted batch norms, clean images")
    return _judged(
        right_N[selects],
        after_N,
        _share(clean_before, clean.labels_N),
        _share(clean_after, clean.labels_N),
        len(failures),
    )


def _share(found: Answers, labels_N: Ints) -> Share | None:
    return share_of(int(found.right(labels_N).sum()), len(labels_N))


def _judged(
    before_N: np.ndarray,
    after_N: np.ndarray,
    clean_before: Share | None,
    clean_after: Share | None,
    adapted_to: int,
) -> NormsAlone:
    fixed, broken = int((~before_N & after_N).sum()), int((before_N & ~after_N).sum())
    gain = (fixed - broken) / len(before_N)
    chance = binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    gap = 1.0 if clean_before is None else clean_before.share - float(before_N.mean())
    better = gain > 0 and chance < LEVEL
    verdict: Verdict = "no help" if not better else "enough" if gain >= ENOUGH * gap else "helps"
    return NormsAlone(
        verdict=verdict,
        adapted_to=adapted_to,
        before=share_of(int(before_N.sum()), len(before_N)),
        after=share_of(int(after_N.sum()), len(after_N)),
        fixed=fixed,
        broken=broken,
        clean_before=clean_before,
        clean_after=clean_after,
    )
