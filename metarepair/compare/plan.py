"""Write and read compare/comparison.json, the planned repairs of a comparison, for `metarepair status`.

The plan is not a stage and has no manifest: every `metarepair compare` replaces it, so that methods, targets and seeds
can be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.errors import DataError, unreadable
from tasks.storage.names import plain_name
from tasks.storage.paths import Place, read_json, write_text

PLAN = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison repairs every target by every method with every seed.

    config: its settings as plain values. images: digests of the user's environments in `evaluate.others`.
    """

    targets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_seed_runs(self) -> bool:
        """Whether each seed has a run of its own (`compare.vary: everything`)."""
        return _group(self.config, "compare").get("vary") == "everything"

    @property
    def experiences(self) -> tuple[str, ...] | None:
        """The corruptions that experiences are mined from, or None if the settings do not say."""
        names = _group(self.config, "mining").get("experiences")
        return tuple(map(str, names)) if isinstance(names, list) else None

    def judging(self, repaired: str) -> dict[str, Any] | None:
        """What the judgement of the repair with digest `repaired` depends on; None if the settings lack it."""
        evaluated, severities = self.config.get("evaluate"), _group(self.config, "mining").get("severities")
        if evaluated is None or severities is None:
            return None
        return judged_by(repaired, evaluated, severities, self.images)


def judged_by(
    repaired: str, evaluate: Mapping[str, Any], severities: Sequence[int], images: Mapping[str, str]
) -> dict[str, Any]:
    """What a judgement depends on: the digest of the repair, settings, and digests of the user's other environments."""
    identity = {"repaired": repaired, "evaluate": evaluate, "severities": list(severities)}
    return identity | {"images": dict(images)} if images else identity


def write_plan(
    folder: Place,
    *,
    targets: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    config: Mapping[str, Any],
    images: Mapping[str, str] | None = None,
) -> None:
    """Replace the plan in a run's folder compare/. `config`: the settings as plain values, for loading a repair."""
    plan = Plan(
        targets=tuple(targets),
        methods=tuple(methods),
        seeds=tuple(seeds),
        config=config,
        images=images or {},
    )
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def read_plan(folder: Place) -> Plan | None:
    """The plan in a run's folder compare/, or None. Raises DataError if it is damaged."""
    path = folder / PLAN
    try:
        content = read_json(path)
        kinds = {"targets": str, "methods": str, "seeds": int}
        lists = all(isinstance(content[key], list) for key in kinds)
        if not lists or not all(isinstance(one, kind) for key, kind in kinds.items() for one in content[key]):
            raise ValueError("it does not list targets, methods and seeds")
        for key in ("targets", "methods"):  # they are names of folders
            content[key] = [plain_name(name) for name in content[key]]
        return Plan(
            **{key: tuple(content[key]) for key in kinds},
            config=dict(content.get("config", {})),
            images=dict(content.get("images", {})),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{unreadable(path, error)}. Compare again to rewrite it.") from error


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = config.get(name)
    return group if isinstance(group, dict) else {}
