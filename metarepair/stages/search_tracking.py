"""Report the trials of a search to its trackers: one run for each trial, and TensorBoard files for its trainings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from statistics import fmean

from metarepair.runs.context import Entry, episodes_after
from metarepair.runs.watching import watching
from metarepair.search.space import judged_environments
from metarepair.stages.search_inputs import TrialSetup
from metarepair.stages.search_trial import TrialRecord, read_record
from metarepair.trackers.tracker import SHOWS_EVENTS, SHOWS_RUNS, Subject
from metarepair.trackers.tracking import EVERY_S, UNREADABLE, Tracking, flat
from tasks.storage.paths import Place, find

VALIDATION = "validation_accuracy"


class TrialTracking:
    """The trials of one search, reported by its driver from the records that they write."""

    def __init__(self, tracking: Tracking, setup: TrialSetup) -> None:
        self.tracking, self.setup = tracking, setup
        self._ended: set[str] = set()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Report the trials while the block runs, and at its end also the scores of those that were stopped early."""
        with watching(self._look, every_s=EVERY_S):
            yield
        self._look(last=True)

    def _look(self, *, last: bool = False) -> None:
        with suppress(*UNREADABLE):  # the next look may find them
            for folder in find(self.setup.trials, "trial-*"):
                record = read_record(folder)
                if record is not None and folder.name not in self._ended:
                    self._report(folder, record, ended=last or record.over)

    def _report(self, folder: Place, record: TrialRecord, *, ended: bool) -> None:
        title, tracking = f"{self.setup.config.name} {folder.name}", self.tracking
        trial = Subject(
            title=title, folder=folder, params=flat(record.drawn), group="trial", trackers=SHOWS_RUNS
        )
        trainings = [
            Subject(
                title=f"{title} {judge}",
                folder=folder / judge,
                params={},
                group="meta-training",
                trackers=SHOWS_EVENTS,
            )
            for judge in judged_environments(self.setup.config)
        ]
        for training in trainings:
            tracking.look(training, partial(episodes_after, training.folder))
        tracking.look(trial, partial(self._rounds_after, folder))
        if ended:
            score = record.objective if record.error is None else None
            tracking.figures({} if score is None else {"score": score}, trial)
            for subject in (*trainings, trial):
                tracking.close(subject, "FINISHED" if record.error is None else "FAILED")
            self._ended.add(folder.name)

    def _rounds_after(self, folder: Place, episode: int) -> list[Entry]:
        """The objective after each round that all judges have judged, at the round's last episode."""
        judged = {}
        for judge in judged_environments(self.setup.config):
            found = episodes_after(folder / judge, episode)
            judged[judge] = {step: e[VALIDATION] for step, e in found if VALIDATION in e}
        rounds = sorted(set.intersection(*map(set, judged.values())))
        at = {step: {judge: accuracies[step] for judge, accuracies in judged.items()} for step in rounds}
        return [(step, {"objective": fmean(scalars.values()), **scalars}) for step, scalars in at.items()]
