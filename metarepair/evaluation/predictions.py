"""Predict the same images with several DNNs; each image is read or corrupted once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from metarepair.adaptation.accuracy import frozen_net, predict
from metarepair.engine.inner import FunctionalNet
from metarepair.engine.vectors import State
from metarepair.methods.repaired import RepairedModel
from metarepair.models.build import DeployedModel
from tasks.experiences.pixels import digests_of, rows_of_images
from tasks.records import Failures, Ints, Pixels
from tasks.splits.digests import Digests, pixel_digests

# N examples, M models

Called = tuple[FunctionalNet, State, State]  # a net, its parameters, its buffers


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of the deployed DNN (first row) and M models on the same N images.

    confidence: the softmax of the predicted class. digests_N: digests of the images' pixels.
    """

    classes: NDArray[np.int64]  # [1 + M, N]
    confidence: NDArray[np.float32]  # [1 + M, N]
    digests_N: Digests


def called(deployed: DeployedModel, models: Sequence[RepairedModel]) -> list[Called]:
    """The deployed DNN, then each model, as nets that predict with stored batch-norm statistics."""
    net = frozen_net(deployed.module)
    others = [(frozen_net(m.architecture_of(deployed).module), m.parameters, m.buffers) for m in models]
    return [(net, net.parameters(), net.buffers()), *others]


def predict_all(
    deployed: DeployedModel,
    nets: Sequence[Called],
    read: Callable[[Ints], Pixels],
    rows: Ints,
    *,
    batch_size: int,
) -> Predictions:
    """Predict the images that `read` returns for some rows."""
    classes, confidence, digests = [], [], []
    for start in range(0, len(rows), batch_size):
        images = read(rows[start : start + batch_size])
        digests.append(pixel_digests(images))
        x_BCHW = deployed.normalise(images)
        tops = [torch.softmax(n.logits(p, b, x_BCHW).float(), dim=1).max(1) for n, p, b in nets]
        confidence.append(np.stack([top.values.cpu().numpy() for top in tops]))
        classes.append(np.stack([top.indices.cpu().numpy() for top in tops]))
    return Predictions(
        classes=np.concatenate(classes, axis=1),
        confidence=np.concatenate(confidence, axis=1),
        digests_N=np.concatenate(digests),
    )


def predicted_on(
    fail: Failures,
    deployed: DeployedModel,
    models: Sequence[RepairedModel],
    image_ids: Ints,
    corrupted: Mapping[int, Predictions],
) -> NDArray[np.int64]:
    """The classes [M, N] that each model predicts on D_fail.

    D_fail's images are among those that were judged, with these `image_ids`, so most predictions are in `corrupted`
    already, by severity. An image that was mined with other pixels (by another version of a library) is predicted from
    its mined pixels.
    """
    rows_N = rows_of_images(image_ids, fail.image_ids_N)
    mined_N, predicted = digests_of(fail.images_NHWC), np.zeros(len(fail), dtype=bool)
    classes = np.zeros((len(models), len(fail)), dtype=np.int64)
    for severity, predictions in corrupted.items():
        same = np.flatnonzero(
            (fail.severities_N == severity) & (rows_N >= 0) & (predictions.digests_N[rows_N] == mined_N)
        )
        classes[:, same], predicted[same] = predictions.classes[1:, rows_N[same]], True
    others = np.flatnonzero(~predicted)
    if len(others):
        given = fail.take(others)
        for number, model in enumerate(models):
            logits = predict(model.architecture_of(deployed), model.parameters, model.buffers, given)
            classes[number, others] = logits.argmax(1).numpy()
    return classes
