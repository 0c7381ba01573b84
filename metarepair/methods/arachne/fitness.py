"""The fitness of candidates for a few weights, for all at once.

Source: Sohn, Kang and Yoo 2022 (Arachne, TOSEM), Sec. 3.3: S = number that is right + Σ over those that are wrong of
1 / (loss + 1), of correct images and of failures; fitness = S_correct + 10 S_wrong.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarepair.data.clean_images import LabelledImages
from metarepair.methods.arachne.candidates import Candidates, Kept
from metarepair.methods.arachne.localise import Places
from metarepair.methods.budget import Budget
from metarepair.methods.examples import Examples
from metarepair.models.build import DeployedModel

# P candidates, N images, K classes, W weights

Floats = NDArray[np.float64]
AT_ONCE_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}  # of one operation; on a CPU more leaves its cache
KEPT_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # of what no candidate changes
FEWEST_IMAGES, MOST_IMAGES = 8, 500  # of a chunk
FEW_CANDIDATES = 16  # of a chunk where not all go: a budget that ends in it loses so many


def scores(logits_PNK: Tensor, labels_N: Tensor) -> Tensor:
    """1 for an image that is right, 1 / (loss + 1) for one that is wrong: [P, N], float64."""
    log_p_PNK = logits_PNK.double().log_softmax(-1)
    labels_PN1 = labels_N.expand(len(logits_PNK), -1)[..., None]
    loss_PN = -log_p_PNK.gather(-1, labels_PN1)[..., 0]
    return torch.where(log_p_PNK.argmax(-1) == labels_N, 1.0, 1 / (loss_PN + 1))


class Fitness:
    """Fitness of candidates for the weights at `places`, over failures and correct images.

    `wrong_weight` is how much a failure counts. Images are counted by the budget once for each candidate.
    """

    def __init__(
        self,
        deployed: DeployedModel,
        places: Places,
        failures: LabelledImages,
        correct: LabelledImages,
        *,
        wrong_weight: float,
        budget: Budget,
    ) -> None:
        self.deployed, self.budget, self.examples = deployed, budget, Examples(failures, correct)
        self.labels_N, self.weights_N = (
            torch.from_numpy(array).to(deployed.device)
            for array in (self.examples.labels_N, np.repeat([wrong_weight, 1.0], self.examples.sizes))
        )
        self.candidates = Candidates(deployed.module, places, self._images(slice(0, 2)))
        self._kept: dict[tuple[int, int], Kept] = {}

    def __call__(self, values_PW: Floats) -> Floats:
        """Fitness [P]; -inf for candidates that the budget was over before."""
        found_P = np.full(len(values_PW), -np.inf)
        candidates, images = self._chunks(len(values_PW))
        for start in range(0, len(values_PW), candidates):
            chunk_PW = torch.from_numpy(values_PW[start : start + candidates]).to(self.candidates.before_W)
            total_P = torch.zeros(len(chunk_PW), dtype=torch.float64, device=chunk_PW.device)
            for first in range(0, len(self.examples), images):
                if self.budget.over:
                    return found_P
                rows = slice(first, min(first + images, len(self.examples)))
                self.budget.spend(images=(rows.stop - first) * len(chunk_PW))
                logits_PNK = self.candidates.logits(self._deployed(rows), chunk_PW)
                total_P += scores(logits_PNK, self.labels_N[rows]) @ self.weights_N[rows]
            # A candidate that overflows to NaN is as bad as can be.
            found_P[start : start + candidates] = total_P.nan_to_num(nan=-np.inf).cpu().numpy()
        return found_P

    def _chunks(self, candidates: int) -> tuple[int, int]:
        """How many candidates and images are taken at once. Images are the same for any number of candidates."""
        most = min(MOST_IMAGES, len(self.examples))
        if self.candidates.note:
            return 1, most
        pairs = max(1, self._room(AT_ONCE_BYTES) // max(1, self.candidates.bytes_moved))
        images = min(max(pairs // FEW_CANDIDATES, FEWEST_IMAGES), most)
        return min(candidates, max(1, pairs // images)), images

    def _room(self, by_device: dict[str, int]) -> int:
        return by_device.get(self.deployed.device.type, by_device["cuda"])

    def _deployed(self, rows: slice) -> Kept:
        """What candidates need of the deployed DNN on these images; kept for the next generation if it has room."""
        key = (rows.start, rows.stop)
        found = self._kept.get(key) or self.candidates.keep(self._images(rows))
        if self.candidates.bytes_kept * len(self.examples) <= self._room(KEPT_BYTES):
            self._kept[key] = found
        return found

    def _images(self, rows: slice) -> Tensor:
        return self.deployed.normalise(self.examples.images(np.arange(len(self.examples))[rows]))
