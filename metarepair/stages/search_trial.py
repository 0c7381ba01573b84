"""One trial of a search: a training for each judge, side by side, and a record of how it does after every round.

<run>/search/trials/<trial>/
    record.json         what it drew and how far it is, after every round
    <environment>/      checkpoints and events of the training that this environment judges, as of `metarepair train`
A trial that is started again goes on from its newest checkpoints. One that pbt has copied begins at another's.
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
from tasks.storage.paths import Place, remove_tree, write_text

RECORD = "record.json"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """How far a trial is. objective: the mean of `accuracies`, of each judge's held-out examples after `rounds`.

    of: its rounds in all. seconds: of training, of all judges together. error: what it failed of, once `over`.
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
    """Whose checkpoints a trial begins at, and after which round and episode."""

    trial: str
    rounds: int
    episode: int


def read_record(folder: Place) -> TrialRecord | None:
    """A trial's record, None where it has not begun, or was cut off while it did."""
    try:
        return TrialRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_record(folder: Place, record: TrialRecord) -> TrialRecord:
    """Replaces a trial's record; returns it."""
    write_text(folder / RECORD, json.dumps(asdict(record)))
    return record


def begin_trial(setup: TrialSetup, name: str, drawn: Mapping[str, Any], donor: Donor | None) -> TrialRecord:
    """The record to go on from. What an earlier drawing of the same name left, with other values, is deleted."""
    folder, plain = setup.trials / name, json.loads(json.dumps(dict(drawn)))
    before = read_record(folder)
    if donor is not None:
        return write_record(folder, TrialRecord(drawn=plain, rounds=donor.rounds))
    # Without a donor a trial of a population is at its beginning: its checkpoints may be of settings that it had later.
    if before is None or before.drawn != plain or search_of(setup.config).scheduler == "pbt":
        remove_tree(folder)
        return write_record(folder, TrialRecord(drawn=plain))
    return before


def trial_settings(setup: TrialSetup, name: str, drawn: Mapping[str, Any]) -> Config | None:
    """The settings of a trial; they name no run, so what it is not given it has no way to. None: no experiences."""
    settings = trial_config(setup.config, drawn)
    if settings is None:
        return None
    return settings.model_copy(update={"storage_path": str(setup.trials), "name": name})


class JointTraining:
    """The trainings of one trial, one for each judge: the same settings, and they advance round by round together."""

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
        """The record after each round, up to `until` at most; written, by rank 0, before it is yielded.

        The last round that was done before comes once more: who should have heard of it may not have.
        """
        try:
            for number in range(self._start(donor), min(until, self.total) + 1):
                self._advance(number)
                if self.kept is None or number == self.total:
                    self.flush()  # others may begin there from now on, or none comes after
                record = self._recorded(record, number)
                yield record
        finally:
            self.close()

    def _start(self, donor: Donor | None) -> int:
        """Loads where to go on; returns the first round to tell of."""
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
        """Trains everyone to the end of a round who is not there yet."""
        for name, trainer in self.trainers.items():
            before = trainer.episode
            if before >= self.episode_after(number):
                continue
            metrics = next(self._going[name])
            if self.context.rank == 0:
                journal = self._journals.setdefault(name, Journal(self.folder / name, kept=self.kept))
                journal.record(metrics, trainer.save, trainer.history[before:])

    def _recorded(self, record: TrialRecord, number: int) -> TrialRecord:
        if self.context.rank != 0:
            return record
        last = self.episode_after(number) - 1
        accuracies = {n: t.history[last]["validation_accuracy"] for n, t in self.trainers.items()}
        found = replace(
            record,
            rounds=number,
            of=self.total,
            objective=sum(accuracies.values()) / len(accuracies),
            accuracies=accuracies,
            seconds=sum(t.seconds for t in self.trainers.values()),
            over=number == self.total,
        )
        return write_record(self.folder, found)

    def flush(self) -> None:
        """Waits until all that was done is on storage."""
        journals, self._journals = self._journals, {}
        for journal in journals.values():
            journal.finish()

    def close(self) -> None:
        """Ends the trainings' threads."""
        for trainer in self.trainers.values():
            trainer.close()
        self.flush()
