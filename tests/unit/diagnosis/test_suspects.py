"""Check which photographs are suspected, on a real DNN with labels made wrong."""

from __future__ import annotations

import numpy as np

from metarepair.data.clean_images import CleanImages
from metarepair.diagnosis.suspects import find_suspects, rows_to_learn
from metarepair.models.build import load_deployed
from tasks.datasets import dataset_info, load_dataset
from tasks.environments import UserImages
from tasks.splits import JUDGE, LEARN, SELECT

DATA = "cifar10_sample"


def test_failures_of_wrong_labels_come_first_and_none_that_judges() -> None:
    test, train = load_dataset(DATA, "test").head(200), load_dataset(DATA, "train").head(300)
    labels = test.labels_N.copy()
    labels[:20] = (labels[:20] + 5) % 10
    zeros = np.zeros(200, np.uint64)
    parts = np.full(200, LEARN, np.int8)
    parts[1::4], parts[3::4] = SELECT, JUDGE
    source = UserImages(
        name="camera",
        classes=test.classes,
        labels_N=labels,
        groups_N=np.arange(200),
        images_NHWC=test.images_NHWC,
        names=tuple(map(str, range(200))),
        digests_N=zeros,
        hashes_N=zeros,
        parts_N=parts,
    )
    clean = CleanImages(images_NHWC=train.images_NHWC, labels_N=train.labels_N)
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info(DATA))
    suspects = find_suspects(source, clean, deployed, seed=0)
    every = suspects.image_ids(200)
    assert not (parts[every] == JUDGE).any()
    predicted = deployed.logits(test.images_NHWC).argmax(1).numpy()
    assert set(every.tolist()) == set(np.flatnonzero((predicted != labels) & (parts != JUDGE)).tolist())
    assert (suspects.image_ids(12) < 20).mean() > 0.8, "15 labels of photographs that may be seen are wrong"
    assert suspects.image_ids(3).tolist() == every[:3].tolist()


def test_clean_images_that_select_are_not_learned_from() -> None:
    clean = CleanImages(images_NHWC=np.zeros((40, 2, 2, 3), np.uint8), labels_N=np.zeros(40, np.int64))
    rows = rows_to_learn(clean)
    assert len(rows) == 36
    assert not set(rows.tolist()) & set(clean.held_out_rows.tolist())
