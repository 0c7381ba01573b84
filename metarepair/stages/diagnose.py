"""Diagnose a DNN on a user's photographs, before any repair. Nothing that judges is looked at.

The photographs are decoded into the run's folder, as `mine` does, which sets aside those that judge; a later run in the
same folder finds them. From then on only those to learn from and to select by are read, of the photographs and of the
clean images.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch

from metarepair.config.run import Config
from metarepair.data.clean_images import CleanImages
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.diagnosis.findings import Diagnosis, SuspiciousLabel, sentences
from metarepair.diagnosis.known import Nearest, nearest_corruptions, nearest_in_kit
from metarepair.diagnosis.measures import accuracy_of
from metarepair.diagnosis.norms import norms_alone
from metarepair.diagnosis.page import SHOWN, write_diagnosis
from metarepair.diagnosis.seen import Answers, answers, counts_of, deployed_extractor
from metarepair.diagnosis.suspects import Suspects, find_suspects, rows_to_learn
from metarepair.features.extractors import distance_name
from metarepair.features.files import read_moments
from metarepair.fixing.plan import plan_fix
from metarepair.fixing.settings import count
from metarepair.fixing.speeds import measure
from metarepair.kit.kit import Kit, check_deployed, fitting, kit_of
from metarepair.models.clean_check import check_on_clean
from metarepair.runs.heartbeat import heartbeat
from metarepair.runs.layout import Run
from metarepair.runs.logs import RESULTS
from metarepair.runs.progress import duration
from metarepair.stages.images import read_user_images
from tasks.corruptions import CORRUPTIONS
from tasks.environments import UserImages
from tasks.errors import ConfigError
from tasks.storage.paths import Place

# N photographs that may be seen, D features

logger = logging.getLogger(__name__)
EXPECTED_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to diagnose.

    Attributes:
        config: the settings; its only target has the photographs.
        budget_s: seconds that a `fix` may take here.
        only_failures: whether all photographs are said to be failures.
        show_images: whether photographs and their names are shown.
    """

    config: Config
    budget_s: float
    only_failures: bool = False
    show_images: bool = True


def diagnose(run: Run, request: Request) -> Place:
    """Diagnose, print the sentences, write the page and the record into the run's folder; return the page.

    Raises DataError for photographs or clean images that cannot be used, WeightsError for a DNN near chance on them.
    """
    started, config = time.monotonic(), request.config
    with heartbeat("diagnose", planned_s=EXPECTED_S):
        kit = kit_of(config)
        with fitting(kit, config):
            here = load_surroundings(config, notes=True)
        if kit is not None:
            check_deployed(kit, here)
        _check_clean(here)
        read_user_images(run, config, here)
        source = here.environment("test", config.targets[0])
        assert isinstance(source, UserImages)
        look = _Look(request, here, source, kit)
        found = look.diagnosis(counts_of(source), started)
        page = write_diagnosis(run.root, found, look.first_images() if request.show_images else None)
    for line in sentences(found):
        logger.log(RESULTS, line)
    logger.log(RESULTS, f"Diagnosis: {page}")
    return page


def _check_clean(here: Surroundings) -> None:
    """Check the DNN on clean images to learn from. Raises WeightsError if it is near chance."""
    check = check_on_clean(here.deployed, here.split("train"))
    logger.info(f"{here.deployed.name}: {check.words('clean images to learn from')}")


def _planned(request: Request, here: Surroundings) -> str:
    """What `fix` would do within the budget, and how long it would take here, from a measurement of ten seconds."""
    config, threads = request.config, torch.get_num_threads()
    try:
        counts, speeds = count(config, here), measure(config, here)[0]
        kit = config.kit is not None
        plan = plan_fix(request.budget_s, speeds, counts, workers=config.workers, kit=kit)
    except ConfigError as error:  # the budget is too small; a diagnosis needs none
        return f"within {duration(request.budget_s)}: not possible. {error}"
    finally:
        torch.set_num_threads(threads)
    return f"within {duration(request.budget_s)}: {plan.words}"


class _Look:
    """One diagnosis: the answers and the features that its parts share."""

    def __init__(self, request: Request, here: Surroundings, source: UserImages, kit: Kit | None) -> None:
        self.request, self.here, self.kit = request, here, kit
        self.clean: CleanImages = here.clean()
        self.suspects: Suspects = find_suspects(source, self.clean, here.deployed, seed=request.config.seed)
        self.seen, self.found = self.suspects.seen, self.suspects.found
        self.clean_found: Answers = answers(here.deployed, self.clean.held_out.images_NHWC, "clean images")

    def diagnosis(self, images: dict[str, int], started: float) -> Diagnosis:
        """Measure everything."""
        config, deployed, classes = self.request.config, self.here.deployed, self.seen.source.classes
        held_out, labels_N = self.clean.held_out, self.seen.labels_N
        return Diagnosis(
            model=deployed.name,
            environment=self.seen.source.name,
            classes=classes,
            only_failures=self.request.only_failures,
            images=images,
            failures=len(self.suspects.failures_F),
            photographs=accuracy_of(self.found, labels_N, classes),
            clean=accuracy_of(self.clean_found, held_out.labels_N, classes),
            norms=norms_alone(deployed, self.seen, self.found, held_out, self.clean_found),
            nearest=self._nearest(),
            distance=distance_name(config.features.extractor),
            labels=self._labels(),
            fix=_planned(self.request, self.here),
            seconds=time.monotonic() - started,
        )

    def _nearest(self) -> Nearest:
        failures_ND = self.suspects.features_ND[np.sort(self.suspects.failures_F)]
        if self.kit is not None:
            known = {name: read_moments(self.kit.moments(name)) for name in self.kit.file.names}
            return nearest_in_kit(failures_ND, known)
        return nearest_corruptions(
            failures_ND,
            [self.here.environment("train", name) for name in CORRUPTIONS],
            rows_to_learn(self.clean),
            self.here.deployed,
            deployed_extractor(self.here.deployed),
            seed=self.request.config.seed,
        )

    def _labels(self) -> list[SuspiciousLabel]:
        ranked, places_F, source = self.suspects.ranked, self.suspects.failures_F, self.seen.source
        names = self.seen.names(places_F) if self.request.show_images else [None] * len(places_F)
        ids = self.suspects.image_ids(len(places_F)).tolist()
        selects_N, labels_N = self.seen.selects_N, self.seen.labels_N
        return [
            SuspiciousLabel(
                file=name,
                image_id=image_id,
                label=source.classes[labels_N[place]],
                predicted=source.classes[self.found.classes_N[place]],
                suggested=source.classes[ranked.suggested_N[place]],
                confidence=float(ranked.confidence_N[place]),
                neighbours=float(ranked.neighbours_N[place]),
                doubted=bool(ranked.doubted_N[place]),
                part="select" if selects_N[place] else "learn",
            )
            for name, image_id, place in zip(names, ids, places_F, strict=True)
        ]

    def first_images(self) -> list[np.ndarray]:
        """The photographs with the most suspicious labels, for the sheet."""
        return list(np.asarray(self.seen.images_NHWC[self.suspects.failures_F[:SHOWN]]))
