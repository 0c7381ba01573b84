"""Check the measurement of batch norm alone on nets and images that are made for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from metarepair.data.clean_images import CleanImages
from metarepair.diagnosis.findings import norms_words
from metarepair.diagnosis.norms import NormsAlone, norms_alone
from metarepair.diagnosis.seen import Seen, answers, seen_of
from metarepair.models.build import DeployedModel
from small import deployed_of
from tasks.environments import UserImages
from tasks.splits import JUDGE, LEARN, SELECT

SHIFT = 60  # grey levels that the photographs are darker by


def threshold_net(*, norm: bool = True) -> DeployedModel:
    """Class 1 if an image is brighter than the stored mean of its batch norm, which is right for clean images."""
    layers = [nn.BatchNorm2d(1, affine=False)] if norm else []
    weigh = nn.Conv2d(3, 1, 1)
    nn.init.constant_(weigh.weight, 1 / 3)
    weigh.bias = nn.Parameter(torch.zeros(1))
    last = nn.Linear(1, 3)
    last.weight.data = torch.tensor([[-1.0], [1.0], [0.0]])
    last.bias.data = torch.tensor([0.0, 0.0, -99.0])
    return deployed_of(nn.Sequential(weigh, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval())


def images_of(labels: np.ndarray, *, grey: int) -> np.ndarray:
    """Flat images, 40 levels darker (class 0) than `grey`, or 10 or 40 levels brighter (class 1)."""
    bright = np.where(np.arange(len(labels)) % 8 < 4, 40, 10)
    level = grey + np.where(labels == 1, bright, -40)
    return np.broadcast_to(level[:, None, None, None], (len(labels), 4, 4, 3)).astype(np.uint8).copy()


def photographs(*, count: int = 80) -> Seen:
    labels = np.arange(count) % 2
    part = np.where(np.arange(count) % 4 < 2, LEARN, SELECT).astype(np.int8)
    part[-8:] = JUDGE
    zeros = np.zeros(count, np.uint64)
    return seen_of(
        UserImages(
            name="night",
            classes=("dark", "bright", "none"),
            labels_N=labels,
            groups_N=np.arange(count),
            images_NHWC=images_of(labels, grey=128 - SHIFT),
            names=tuple(f"{n}.png" for n in range(count)),
            digests_N=zeros,
            hashes_N=zeros,
            parts_N=part,
        )
    )


def measured(deployed: DeployedModel, seen: Seen) -> NormsAlone:
    labels = np.arange(20) % 2
    clean = CleanImages(images_NHWC=images_of(labels, grey=128), labels_N=labels)
    before, clean_before = answers(deployed, seen.images_NHWC, "p"), answers(deployed, clean.images_NHWC, "c")
    return norms_alone(deployed, seen, before, clean, clean_before)


def test_statistics_of_failures_alone_change_what_is_right() -> None:
    """All bright photographs are failures, and their mean becomes the border: the brighter half is then right."""
    deployed, seen = threshold_net(), photographs()
    state = {key: value.clone() for key, value in deployed.module.state_dict().items()}
    found = measured(deployed, seen)
    assert (found.verdict, found.adapted_to, found.fixed, found.broken) == ("enough", 18, 9, 0)
    assert found.before is not None
    assert found.after is not None
    assert (found.before.right, found.after.right, found.before.images) == (18, 27, 36)
    assert found.clean_before is not None
    assert found.clean_before.share == 1.0
    assert all(torch.equal(value, state[key]) for key, value in deployed.module.state_dict().items())
    assert norms_words(found).startswith(
        "Adapting batch norm alone: 50.0% to 75.0% of 36 photographs that select"
    )


def test_a_net_without_batch_norm_has_nothing_to_adapt() -> None:
    found = measured(threshold_net(norm=False), photographs())
    assert found.verdict == "none to adapt"
    assert "nothing to adapt" in norms_words(found)


def test_without_failures_nothing_is_measured() -> None:
    seen = photographs()
    bright = Seen(source=seen.source, rows_N=seen.rows_N[seen.labels_N == 0])
    assert measured(threshold_net(), bright).verdict == "too few"


@pytest.mark.parametrize("count", [16, 80])
def test_photographs_that_judge_are_not_reachable(count: int) -> None:
    seen = photographs(count=count)
    assert len(seen) == count - 8
    assert not (seen.source.parts_N[seen.rows_N] == JUDGE).any()
    assert len(seen.images_NHWC) == len(seen)
