"""What a comparison is going to repair in; compare/comparison.json out, for those who look on, and read back.

No stage and no manifest: every `metarepair compare` replaces it, so that methods, targets and seeds may be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.errors import DataError, unreadable
from tasks.storage.paths import Place, write_text

PLAN = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison repairs every target by every method with every seed. `config`: its settings as plain values."""

    targets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def experiences(self) -> tuple[str, ...] | None:
        """The corruptions that experiences are mined of, where the settings say so."""
        names = _group(self.config, "mining").get("experiences")
        return tuple(map(str, names)) if isinstance(names, list) else None

    def judging(self, repaired: str) -> dict[str, Any] | None:
        """What the judgement of a repair depends on, by the digest of the repair; None where the settings lack it."""
        evaluated, severities = self.config.get("evaluate"), _group(self.config, "mining").get("severities")
        if evaluated is None or severities is None:
            return None
        return {"repaired": repaired, "evaluate": evaluated, "severities": severities}


def write_plan(
    folder: Place,
    *,
    targets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    config: Mapping[str, Any],
) -> None:
    """Replaces the plan in a run's folder compare/; `config`: the settings as plain values, for who loads a repair."""
    plan = Plan(targets=tuple(targets), methods=tuple(methods), seeds=tuple(seeds), config=config)
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def read_plan(folder: Place) -> Plan | None:
    """The plan in a run's folder compare/, None where there is none. Raises DataError when it is damaged."""
    path = folder / PLAN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"targets": str, "methods": str, "seeds": int}
        lists = all(isinstance(found[key], list) for key in kinds)
        if not lists or not all(isinstance(one, kind) for key, kind in kinds.items() for one in found[key]):
            raise ValueError("it is no list of targets, methods and seeds")
        return Plan(**{key: tuple(found[key]) for key in kinds}, config=dict(found.get("config", {})))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{unreadable(path, error)}. Compare again, which writes it anew.") from error


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
