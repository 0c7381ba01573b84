"""SENSEI's genetic search: one population of transformation vectors for each training image.

Source: Gao et al., ICSE 2020 (SENSEI); operators of the authors' code, with two differences. Theirs draws a child again
up to ten times if it exists already; here a duplicate counts once when the fittest are kept. For a crossing, the most
different vector is here the one at the largest distance, with each gene scaled by its range; theirs counts the genes
that differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from metarepair.engine.vectors import State
from metarepair.methods.sensei.variants import Gene, Genes
from tasks.keys import keyed_generator
from tasks.records import Ints

# N images, B of them in a batch, P variants kept of an image, K children, V = P + K, G genes

Losses = NDArray[np.float32]


class Populations:
    """The fittest vectors of each image, the fittest first, with their losses at the last evaluation.

    An image starts with the identity and random vectors, whose loss is not known yet and set to infinity.
    """

    def __init__(self, genes: Sequence[Gene], *, images: int, keep: int, seed: int) -> None:
        self.genes = tuple(genes)
        self.low_G, self.high_G, self.step_G, self.neutral_G = (
            np.array([getattr(gene, key) for gene in genes], np.float32)
            for key in ("low", "high", "step", "neutral")
        )
        draws = keyed_generator("sensei-start", seed).random((images, keep, len(genes)), np.float32)
        self.vectors_NPG: Genes = self.low_G + draws * (self.high_G - self.low_G)
        self.vectors_NPG[:, 0] = self.neutral_G
        self.losses_NP: Losses = np.full((images, keep), np.inf, np.float32)

    def children(
        self, rows_B: Ints, number: int, *, mutate_probability: float, generator: np.random.Generator
    ) -> Genes:
        """Return new vectors [B, K, G]: with `mutate_probability`, mutations of each image's best, else crossings."""
        if generator.random() < mutate_probability:
            return self._mutated(self.vectors_NPG[rows_B, 0], number, generator)
        return self._crossed(self.vectors_NPG[rows_B], number, generator)

    def keep_fittest(self, rows_B: Ints, vectors_BVG: Genes, losses_BV: Losses) -> None:
        """Replace the images' populations with the vectors of the largest losses."""
        order_BP = np.argsort(-_without_copies(vectors_BVG, losses_BV), axis=1, kind="stable")
        order_BP = order_BP[:, : self.losses_NP.shape[1]]
        self.vectors_NPG[rows_B] = np.take_along_axis(vectors_BVG, order_BP[:, :, None], axis=1)
        self.losses_NP[rows_B] = np.take_along_axis(losses_BV, order_BP, axis=1)

    def state(self) -> State:
        """Return the populations for a checkpoint."""
        return {"vectors": torch.from_numpy(self.vectors_NPG), "losses": torch.from_numpy(self.losses_NP)}

    def load(self, state: State) -> None:
        """Resume from a checkpoint."""
        self.vectors_NPG, self.losses_NP = (state[key].numpy().copy() for key in ("vectors", "losses"))

    def _mutated(self, best_BG: Genes, number: int, generator: np.random.Generator) -> Genes:
        """Mutate half of the genes: a step up, a step down, or mirrored at the neutral value."""
        shape = (len(best_BG), number, len(self.genes))
        chosen_BKG = generator.random(shape).argsort(-1) < (len(self.genes) + 1) // 2
        move_BKG = generator.integers(3, size=shape)
        best_B1G = best_BG[:, None]
        moved_BKG = np.where(move_BKG == 0, best_B1G + self.step_G, best_B1G - self.step_G)
        moved_BKG = np.where(move_BKG == 2, 2 * self.neutral_G - best_B1G, moved_BKG)
        return np.where(chosen_BKG, np.clip(moved_BKG, self.low_G, self.high_G), best_B1G)

    def _crossed(self, vectors_BPG: Genes, number: int, generator: np.random.Generator) -> Genes:
        """Cross the best vector with the one farthest from it.

        A child takes some of its genes from the other, never all or none. The children of an image take different ones.
        """
        best_B1G, rest_BPG = vectors_BPG[:, :1], vectors_BPG[:, 1:]
        distance_BP = (np.abs(rest_BPG - best_B1G) / (self.high_G - self.low_G)).sum(-1)
        other_B1G = np.take_along_axis(rest_BPG, distance_BP.argmax(1)[:, None, None], axis=1)
        ways = 2 ** len(self.genes) - 2
        way_BK = generator.random((len(vectors_BPG), ways)).argsort(1)[:, np.arange(number) % ways] + 1
        from_other_BKG = (way_BK[:, :, None] >> np.arange(len(self.genes))) & 1 == 1
        return np.where(from_other_BKG, other_B1G, best_B1G)


def _without_copies(vectors_BVG: Genes, losses_BV: Losses) -> Losses:
    """Return the losses, with minus infinity for a vector that is equal to an earlier one."""
    same_BVV = (vectors_BVG[:, :, None] == vectors_BVG[:, None]).all(-1)
    return np.where(np.tril(same_BVV, -1).any(-1), -np.inf, losses_BV)
