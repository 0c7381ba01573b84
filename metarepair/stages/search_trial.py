"""Run one trial of a search: a training for each judge, side by side, and a record after every round.

<run>/search/trials/<trial>/
    record.json         its drawn settings and its progress, written after every round
    <environment>/      checkpoints of the training that this environment judges, as of `metarepair train`
A restarted trial resumes from its newest checkpoints. A trial that pbt copies from another starts from the other's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from metarepair.config.run import Config
from metarepair.meta_training.inputs import TrainingInputs
from metarepair.meta_training.meta_train import rounds
from metarepair.runs.context import Context, Journal
from metarepair.search.space import search_of, trial_config
from metarepair.stages.search_inputs import TrialSetup, trial_inputs
from metarepair.stages.train import build_trainer
from tasks.storage.paths import Place, read_json, remove_tree, write_text

RECORD = "record.json"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """The progress of a trial after `rounds` of its `of` rounds.

    objective: the mean of `accuracies`, each on the held-out examples of one judge. seconds: of training, for all
    judges together. error: why the trial failed, once it is `over`.
    """

    drawn: Mapping[str, Any]
    rounds: int = 0
    of: int = 0
    objective: float | None = None
    accuracies: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    over: bool = False
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Donor:
    """The trial whose checkpoints another trial starts from, and after which round and episode."""

    trial: str
    rounds: int
    episode: int


def read_record(folder: Place) -> TrialRecord | None:
    """The record of a trial, or None if the trial has not started or was cut off while it did."""
    try:
        return TrialRecord(**read_json(folder / RECORD))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_record(folder: Place, record: TrialRecord) -> TrialRecord:
    """Replace the record of a trial and return it."""
    write_text(folder / RECORD, json.dumps(asdict(record)))
    return record


def begin_trial(setup: TrialSetup, name: str, drawn: Mapping[str, Any], donor: Donor | None) -> TrialRecord:
    """The record to resume from. Whatever an earlier trial of this name left is deleted if its values differ."""
    folder, plain = setup.trials / name, json.loads(json.dumps(dict(drawn)))
    before = read_record(folder)
    if donor is not None:
        return write_record(folder, TrialRecord(drawn=plain, rounds=donor.rounds))
    # Without a donor, a trial of a population starts from scratch: its checkpoints may belong to later settings.
    if before is None or before.drawn != plain or search_of(setup.config).scheduler == "pbt":
        remove_tree(folder)
        return write_record(folder, TrialRecord(drawn=plain))
    return before


def trial_settings(setup: TrialSetup, name: str, drawn: Mapping[str, Any]) -> Config | None:
    """The settings of a trial, or None if they leave it no experiences.

    They do not name the run, so that the trial cannot reach anything that it was not given.
    """
    settings = trial_config(setup.config, drawn)
    if settings is None:
        return None
    return settings.model_copy(update={"storage_path": str(setup.trials), "name": name})


class JointTraining:
    """The trainings of one trial, one for each judge: they share settings and advance together, round by round."""

    def __init__(
        self, setup: TrialSetup, settings: Config, context_in: Callable[[Place], Context], *, kept: int | None
    ) -> None:
        self.setup, self.settings, self.kept = setup, settings, kept
        self.folder = setup.trials / settings.name
        inputs: tuple[TrainingInputs, ...] = trial_inputs(setup, settings)
        self.trainers = {
            i.target: build_trainer(i, settings, context_in(self.folder / i.target)) for i in inputs
        }
        self.context = next(iter(self.trainers.values())).context
        self._going = {name: rounds(trainer) for name, trainer in self.trainers.items()}
        self._journals: dict[str, Journal] = {}

    @property
    def total(self) -> int:
        return self.settings.train.rounds_of(self.settings.train.episodes)

    def records(self, record: TrialRecord, donor: Donor | None, until: int) -> Iterator[TrialRecord]:
        """Yield the record after each round, up to `until` at most. Rank 0 writes it before it is yielded.

        When a trial resumes, its last completed round is yielded again, since its report may have been lost.
        """
        try:
            for number in range(self._start(donor), min(until, self.total) + 1):
                self._advance(number)
                if self.kept is None or number == self.total:
                    self.flush()  # other trials may start from this round, or it is the last
                record = self._recorded(record, number)
                yield record
        finally:
            self.close()

    def _start(self, donor: Donor | None) -> int:
        """Load the checkpoints to resume from. Return the first round to yield."""
        for name, trainer in self.trainers.items():
            if donor is not None:
                checkpoints = self.setup.trials / donor.trial / name / "checkpoints"
                trainer.load(checkpoints / f"checkpoint-{donor.episode:06d}", other_settings=True)
            elif (checkpoint := trainer.context.last_checkpoint()) is not None:
                trainer.load(checkpoint)
            trainer.context.share([*trainer.learned.values(), *trainer.buffers.values()])
        done = min(self.settings.train.rounds_of(t.episode) for t in self.trainers.values())
        return done + 1 if donor is not None else max(done, 1)

    def episode_after(self, number: int) -> int:
        """The last episode of a round."""
        return min(number * self.settings.train.round_episodes, self.settings.train.episodes)

    def _advance(self, number: int) -> None:
        """Continue each training that has not reached the end of the round."""
        for name, trainer in self.trainers.items():
            if trainer.episode >= self.episode_after(number):
                continue
            metrics = next(self._going[name])
            if self.context.rank == 0:
                journal = self._journals.setdefault(name, Journal(self.folder / name, kept=self.kept))
                journal.record(metrics, trainer.save)

    def _recorded(self, record: TrialRecord, number: int) -> TrialRecord:
        if self.context.rank != 0:
            return record
        last = self.episode_after(number) - 1
        accuracies = {n: t.history[last]["validation_accuracy"] for n, t in self.trainers.items()}
        latest = replace(
            record,
            rounds=number,
            of=self.total,
            objective=sum(accuracies.values()) / len(accuracies),
            accuracies=accuracies,
            seconds=sum(t.seconds for t in self.trainers.values()),
            over=number == self.total,
        )
        return write_record(self.folder, latest)

    def flush(self) -> None:
        """Wait until everything recorded is on storage."""
        journals, self._journals = self._journals, {}
        for journal in journals.values():
            journal.finish()

    def close(self) -> None:
        """End the threads of the trainings."""
        for trainer in self.trainers.values():
            trainer.close()
        self.flush()
