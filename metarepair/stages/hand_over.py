"""Hand over the repaired weights of a `fix` in the form of the user's own weights file.

The record of a `fix`, `fix.json`, names the weights that were handed over. No others are replaced or deleted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metarepair.config.photographs import NAME
from metarepair.config.run import ModelConfig
from metarepair.models.build import DeployedModel
from metarepair.repairs.export import export_original
from metarepair.repairs.saved import load_repaired
from metarepair.reports.card import CARD_FILES, write_cards
from metarepair.reports.outcome import Outcome, outcome_of
from metarepair.runs.layout import FIX_RECORD, Run
from metarepair.runs.logs import RESULTS
from metarepair.weights import resolve_weights
from tasks.errors import ConfigError, DataError, unreadable
from tasks.storage.paths import Place, read_json, write_text

logger = logging.getLogger(__name__)
REPAIRED = "repaired"  # with the suffix of the user's weights file
NO_SUFFIX = ".weights"  # of a weights file without one: `repaired` is a folder
HANDED_OVER = "handed_over"  # in the record: the names of the weights that were handed over


@dataclass(frozen=True)
class HandOver:
    """The weights that a `fix` hands over in its run; `model`: the settings of the DNN that is repaired."""

    run: Run
    model: ModelConfig

    def refuse_foreign(self) -> None:
        """Raise ConfigError if a file to hand over would replace one that `fix` did not write."""
        for out in (self.run.root / name for name in (self._out.name, *CARD_FILES)):
            if out.is_file() and out.name not in self.names():
                raise ConfigError(
                    f"{out} exists, and {self.run.root / FIX_RECORD} does not name it as a file that fix handed over, "
                    "so it is not replaced. Move it away, or give another --out."
                )

    def names(self) -> list[str]:
        """The names of the weights that an earlier call handed over; none if there is no record of it."""
        try:
            names = read_json(self.run.root / FIX_RECORD).get(HANDED_OVER, [])
        except (OSError, ValueError, AttributeError):  # `read_record` says so where the record is needed
            return []
        return [name for name in names if isinstance(name, str) and _is_handed_over(name)]

    def write(self, result: Mapping[str, Any], deployed: DeployedModel, *, only_failures: bool) -> Outcome:
        """Write the repaired weights in the form that the deployed ones came in, with a card; none if these are kept.

        Files of an earlier call are deleted. only_failures: of `outcome_of`, whose outcome is returned; its words name
        the weights.
        """
        outcome = outcome_of(result, only_failures=only_failures)
        before = self.names()
        if outcome.kept or outcome.method is None:
            self._keep_only((), before)
            return outcome
        folder = self.run.repaired(NAME) / outcome.method / str(outcome.seed)
        repaired = replace(deployed, module=load_repaired(folder, outcome.method, deployed))
        # Recorded before it is written: a file that a killed command leaves is known as ours, too.
        self._note({*before, self._out.name, *CARD_FILES})
        logger.log(RESULTS, export_original(repaired, self._original, self._out, entry=self.model.entry))
        write_cards(self.run, result, handed_over=self._out, only_failures=only_failures)
        self._keep_only((self._out.name, *CARD_FILES), before)
        return replace(outcome, words=f"{outcome.words} Its weights: {self._out}")

    @property
    def _original(self) -> Path:
        return resolve_weights(self.model.weights)

    @property
    def _out(self) -> Place:
        """Where the repaired form of the weights file is handed over."""
        return self.run.root / f"{REPAIRED}{self._original.suffix or NO_SUFFIX}"

    def _note(self, names: Collection[str]) -> None:
        record = read_record(self.run) | {HANDED_OVER: sorted(names)}
        write_text(self.run.root / FIX_RECORD, json.dumps(record, indent=1) + "\n")

    def _keep_only(self, names: Collection[str], before: Collection[str]) -> None:
        """Delete the weights that were handed over `before`, except these; then record these."""
        for name in set(before) - set(names):
            (self.run.root / name).unlink(missing_ok=True)
        self._note(names)


def read_record(run: Run) -> dict[str, Any]:
    """Read the record of the `fix` in a run. Raises DataError if it is missing or damaged."""
    path = run.root / FIX_RECORD
    try:
        record: dict[str, Any] = read_json(path)
        record["given"], record["plan"]["total_s"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unreadable(path, error)}. Plan again with --restart.") from error
    return record


def _is_handed_over(name: str) -> bool:
    """Whether a name from the record can be that of a handed-over file: a damaged record deletes nothing else."""
    path = Path(name)
    return name in CARD_FILES or (path.name == name and path.stem == REPAIRED and bool(path.suffix))
