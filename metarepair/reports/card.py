"""Write a model card beside a repaired model: card.json, and README.md, made from it alone (`card_text`).

A card of a run says how the repair was judged (`card_of`), any other that nobody did (`unjudged_card`). No card holds
the name of a photograph or a path of a machine.
Source: Mitchell et al. 2019 (model cards).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metarepair.reports.card_text import LICENCE, card_text
from metarepair.reports.html import without_paths
from metarepair.reports.outcome import knows_only_failures, lost_words, outcome_of, taken_inside
from metarepair.reports.table import Result, Row, judged_by, shown_row, target_of
from metarepair.reports.words import method_words
from metarepair.runs.layout import Run
from metarepair.weights.hub import is_hub
from tasks.storage.manifest import file_hash, require_manifest, versions
from tasks.storage.paths import Place, local, read_json, write_text
from tasks.storage.stages import REPAIRED

Card = dict[str, Any]

CARD, CARD_DATA = "README.md", "card.json"
CARD_FILES = (CARD, CARD_DATA)
ARCHITECTURE = "architecture.json"  # of methods that change it
VERSION = 1


def write_cards(
    run: Run, result: Result, *, handed_over: Place | None = None, only_failures: bool | None = None
) -> None:
    """Write a card beside each repaired model of a target, or only beside the file that `fix` hands over.

    only_failures: of `outcome_of`. A repair of an older version recorded too little, and gets no card.
    """
    unknown = knows_only_failures(result) if only_failures is None else only_failures
    make = _card_maker(run, result, only_failures=unknown)
    if make is None:
        return
    rows = [row for row in result["methods"] if row["method"] != "none"]
    models = [(row, run.root / row["weights"]) for row in rows]
    taken = shown_row(result)
    if handed_over is not None and taken is not None:
        models = [(taken, handed_over)]
    for row, weights in models:
        entry = None if handed_over is None else result["config"]["model"].get("entry")
        write_card(make(row), weights, entry=entry)


def card_of_repair(run: Run, result: Result, method: str, seed: int) -> Card | None:
    """Return the card of one repair of a run without its weights file; None if an older version recorded too little."""
    make = _card_maker(run, result, only_failures=knows_only_failures(result))
    rows = [row for row in result["methods"] if (row["method"], row["seed"]) == (method, seed)]
    return make(rows[0]) if make and rows else None


def _card_maker(run: Run, result: Result, *, only_failures: bool) -> Callable[[Row], Card] | None:
    """Return what makes the card of a row of the result; None if an older version recorded too little."""
    folder = run.repaired(target_of(result))
    if "preprocessing" not in result or not (folder / "side_effects.json").is_file():
        return None
    told, inputs = read_json(folder / "side_effects.json"), require_manifest(folder, REPAIRED.remedy).inputs
    return lambda row: card_of(result, row, told, inputs, only_failures=only_failures)


def write_card(card: Card, weights: Place, *, entry: str | None = None) -> None:
    """Write a card's two files beside the weights file that it is of; entry: the one of it that holds the tensors."""
    card["weights"] = _file(weights) | {"entry": entry}
    card["new_architecture"] = (weights.parent / ARCHITECTURE).is_file()
    write_text(weights.parent / CARD_DATA, json.dumps(card, indent=1, allow_nan=False) + "\n")
    write_text(weights.parent / CARD, card_text(card))


def read_card(weights: Place) -> Card | None:
    """Return the card beside a weights file; None if there is none, or one of another file.

    Raises OSError, ValueError, KeyError or TypeError if it is damaged.
    """
    path = weights.parent / CARD_DATA
    if not path.is_file():
        return None
    card: Card = read_json(path)
    own = card["weights"]
    return card if (own["file"], own["blake2b_128"]) == (weights.name, file_hash(weights)) else None


def foreign_file(weights: Place) -> Place | None:
    """Return the file that a card of `weights` would replace and that is none, or one of another file; else None."""
    readme, data = weights.parent / CARD, weights.parent / CARD_DATA
    if readme.exists() and not _begins_as_ours(readme):
        return readme
    if not data.exists():
        return None
    try:
        own = read_json(data)["weights"]["file"] == weights.name
    except (OSError, ValueError, KeyError, TypeError):
        own = False
    return None if own else data


def _begins_as_ours(readme: Place) -> bool:
    try:
        return readme.read_text(encoding="utf-8").startswith(f"---\n{LICENCE.splitlines()[0]}")
    except (OSError, ValueError):
        return False


def _file(path: Place) -> dict[str, Any]:
    return {"file": path.name, "size_bytes": local(path).stat().st_size, "blake2b_128": file_hash(path)}


def unjudged_card(
    *,
    model: Mapping[str, Any],
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    verdict: str,
    **known: Any,
) -> Card:
    """Return the card of a model that no image judged; `known`: what is known of it, by the keys of `card_of`."""
    return {
        "verdict": verdict,
        "version": VERSION,
        "licence": None,
        "model": dict(model),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "judged_by": ["No image judged it, as far as is recorded."],
        "only_failures_judge": False,
        "results": {},
        "selected": [],
        **known,
        "versions": versions(),
    }


def card_of(
    result: Result, row: Row, told: Mapping[str, Any], inputs: Mapping[str, str], *, only_failures: bool
) -> Card:
    """Return the card of a row of result.json as plain values, the verdict first; its weights file is not yet in it.

    told: the content of side_effects.json. inputs: digests of what the repair was made from.
    """
    config = result["config"]
    effects = {
        name: {key: value for key, value in found.items() if key != "confusion"}
        | {"calibration": {when: {"error": one["error"]} for when, one in found["calibration"].items()}}
        for name, found in told["repairs"][f"{row['method']}/{row['seed']}"].items()
    }
    beside = [one for one in result["methods"] if one is row or one["method"] == "none"]
    return {
        "verdict": " ".join(_verdict(result, row, only_failures=only_failures)),
        "version": VERSION,
        "licence": None,  # for the user to state
        "target": target_of(result),
        "method": row["method"],
        "method_words": method_words(str(row["method"])),
        "seed": row["seed"],
        "model": {key: config["model"].get(key) for key in ("name", "stem")},
        "made_from": made_from(config["model"]["weights"]),
        "classes": list(told["class_names"]),
        "preprocessing": result["preprocessing"],
        "data": config["data"]["name"],
        "inputs": dict(inputs),
        "counts": result["d_collect"],
        "judging": result["judging"],
        "judged_by": judged_by({**result, "methods": beside}),
        "only_failures_judge": only_failures,
        "results": effects,
        "fallen_classes": row.get("fallen_classes") or [],
        "selection": row.get("selection"),
        "selected": taken_inside({"methods": [row]}),
        "cost": {key: row[key] for key in ("images_seen", "gradient_steps")},
        "versions": result["versions"],
        "settings": without_paths(config),
    }


def made_from(weights: str) -> str:
    """The name of a weights file, without its folder; of one of a hub, with the model and its commit."""
    return weights if is_hub(weights) else re.split(r"[/\\]", weights)[-1]


def _verdict(result: Result, row: Row, *, only_failures: bool) -> list[str]:
    """Say what the repair lost, and whether to take it."""
    choice = result.get("choice")
    selection = row.get("selection")
    if choice is not None and (row["method"], row["seed"]) == (choice["method"], choice["seed"]):
        return [outcome_of(result, only_failures=only_failures).words]
    if selection is not None and selection["kept"]:
        return ["No repair by this method was inside the limits: these are the deployed weights, unchanged."]
    if choice is None:
        why = "No limits were set" if selection is None else "A comparison takes none of its repairs"
        return [*lost_words(row), f"{why}, so whether to take this one is for you to decide."]
    other = f"{method_words(choice['method'])}, seed {choice['seed']}"
    return [*lost_words(row), f"This repair was not taken: {other} was better on the images that select."]
