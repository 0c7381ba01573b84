"""Write a model card beside a repaired model: card.json, and README.md in Hugging Face's form, made from it alone.

No card holds the name of a photograph or a path of a machine, and text from settings, data or plugins stays text.
Source: Mitchell et al. 2019 (model cards); the form: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from metarepair.reports.html import without_paths
from metarepair.reports.outcome import knows_only_failures, lost_words, outcome_of, taken_inside
from metarepair.reports.side_effects import Effects, effect_words
from metarepair.reports.table import Result, Row, judged_by, shown_row, target_of
from metarepair.reports.words import method_words, percent, plain_words, points, set_words
from metarepair.runs.layout import Run
from metarepair.weights.hub import TORCHVISION, is_hub, read_hub_name
from tasks.storage.manifest import file_hash, require_manifest
from tasks.storage.paths import Place, local, read_json, write_text
from tasks.storage.stages import REPAIRED

Card = dict[str, Any]

CARD, CARD_DATA = "README.md", "card.json"
CARD_FILES = (CARD, CARD_DATA)
ARCHITECTURE = "architecture.json"  # of methods that change it
VERSION = 1
MOST_CLASSES = 10  # of a set of images, in README.md; card.json has all
TASK = "image-classification"
LICENCE = (
    "# The licence, and the base_model on the Hub if it is not below, are for you to state: MetaRepair knows neither.\n"
    "# `metarepair report` and `fix` write this file anew: edit a copy.\n"
)
LOAD = """\
import json
from pathlib import Path

from metarepair.models.build import DeployedModel, build_model
from metarepair.models.fit import load_weights
from metarepair.models.weights_file import read_weights

card = json.loads(Path("card.json").read_text(encoding="utf-8"))
made = card["model"]
module = build_model(made["name"], len(card["classes"]), stem=made["stem"])
load_weights(module, read_weights(Path(card["weights"]["file"]), entry=card["weights"]["entry"]), made["name"])
module.eval()
model = DeployedModel(name=made["name"], module=module, num_classes=len(card["classes"]), **card["preprocessing"])
labels = model.logits(images).argmax(1)  # images: uint8 [batch, height, width, RGB]
"""
REBUILD = """\
from metarepair.repairs.saved import repaired_architecture
module = repaired_architecture(Path(), card["method"], module)
"""
# What Markdown, HTML, formulas, mentions or links begin with (`_` inside a word begins nothing), and, at the start of a
# text, a list or a rule.
MARKS = re.compile(
    r"[\\`*\[\]{}#|~<>&$!@]|_(?![^\W_])|(?<![^\W_])_|:(?=//)|(?<=www)\.|^[-+=\d]", re.IGNORECASE
)


def write_cards(
    run: Run, result: Result, *, handed_over: Place | None = None, only_failures: bool | None = None
) -> None:
    """Write a card beside each repaired model of a target, or only beside the file that `fix` hands over.

    only_failures: of `outcome_of`. A repair of an older version recorded too little, and gets no card.
    """
    folder = run.repaired(target_of(result))
    if "preprocessing" not in result or not (folder / "side_effects.json").is_file():
        return
    told, inputs = read_json(folder / "side_effects.json"), require_manifest(folder, REPAIRED.remedy).inputs
    rows = [row for row in result["methods"] if row["method"] != "none"]
    models = [(row, run.root / row["weights"]) for row in rows]
    taken = shown_row(result)
    if handed_over is not None and taken is not None:
        models = [(taken, handed_over)]
    unknown = knows_only_failures(result) if only_failures is None else only_failures
    for row, weights in models:
        card = card_of(result, row, told, inputs, only_failures=unknown)
        entry = None if handed_over is None else result["config"]["model"].get("entry")
        card["weights"] = _file(weights) | {"entry": entry}
        card["new_architecture"] = (weights.parent / ARCHITECTURE).is_file()
        write_text(weights.parent / CARD_DATA, json.dumps(card, indent=1, allow_nan=False) + "\n")
        write_text(weights.parent / CARD, card_text(card))


def _file(path: Place) -> dict[str, Any]:
    return {"file": path.name, "size_bytes": local(path).stat().st_size, "blake2b_128": file_hash(path)}


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
    if choice is None:
        return [*lost_words(row), "No limits were set, so whether to take this repair is for you to decide."]
    if not choice["kept"] and (row["method"], row["seed"]) == (choice["method"], choice["seed"]):
        return [outcome_of(result, only_failures=only_failures).words]
    if row["selection"]["kept"]:
        return ["No repair by this method was inside the limits: these are the deployed weights, unchanged."]
    other = f"{method_words(choice['method'])}, seed {choice['seed']}"
    return [*lost_words(row), f"This repair was not taken: {other} was better on the images that select."]


def card_text(card: Card) -> str:
    """Return README.md: YAML of Hugging Face, then Markdown."""
    target, model = card["target"], card["model"]["name"]
    parts = [
        f"---\n{LICENCE}{_front_matter(card)}---",
        f"# {markdown_text(_title(card))}",
        markdown_text(card["verdict"]),
        "## What this is",
        _bullets(
            [
                f"An image classifier: {model}, of {len(card['classes']):,} classes, which card.json lists in order.",
                f"Repaired by: {card['method_words']}, seed {card['seed']}, for the environment "
                f"{plain_words(target)}; {card['cost']['gradient_steps']:,} gradient steps.",
                f"Made from: {card['made_from']}, whose tensors have the digest {card['inputs'].get('deployed')} "
                "(BLAKE2b-128 of names and bytes).",
                f"This file: {card['weights']['file']}, {card['weights']['size_bytes']:,} bytes, BLAKE2b-128 "
                f"{card['weights']['blake2b_128']} (b2sum -l 128).",
                f"Versions: {', '.join(f'{name} {version}' for name, version in card['versions'].items())}.",
            ]
        ),
        "## How it was judged",
        _bullets(
            [
                *card["judged_by"],
                *(effect_words(set_words(name, target), found) for name, found in card["results"].items()),
                *card["selected"],
            ]
        ),
        "## What it breaks",
        _worst_classes(card),
        "## What it must not be used for",
        _bullets(_unknown(card)),
        "## How to load it",
        _loading(card),
        "## Data and settings",
        _bullets(_data(card)),
        _table(
            ["made from", "digest"], [[markdown_text(key), value] for key, value in card["inputs"].items()]
        ),
        "Limits, costs, all classes and all settings without paths: card.json, from which this page is made.",
    ]
    return "\n\n".join(parts) + "\n"


def markdown_text(text: object) -> str:
    """Return text from outside as one line of Markdown in which every character stands for itself.

    Entities are text to every reader, in tables, too; a backslash is not, since formulas begin with it.
    """
    return MARKS.sub(lambda found: f"&#{ord(found[0])};", _one_line(text))


def _one_line(text: object) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())


def _title(card: Card) -> str:
    return _one_line(f"{card['model']['name']} repaired for {plain_words(card['target'])}")


def _front_matter(card: Card) -> str:
    results = [
        {
            "task": {"type": TASK},
            "dataset": {
                "name": _data_name(card, name),
                "type": card["data"] if name == "clean" else card["target"],
            },
            "metrics": [
                {"type": "accuracy", "name": "accuracy after the repair", "value": found["after"]},
                {"type": "accuracy", "name": "accuracy before the repair", "value": found["before"]},
            ],
        }
        for name, found in card["results"].items()
    ]
    content = {
        "license": "other",
        "library_name": "metarepair",
        "pipeline_tag": TASK,
        **_base_model(card["made_from"]),
        "tags": ["metarepair", "model-repair", TASK],
        "model-index": [{"name": _title(card), "results": results}],
    }
    return str(yaml.safe_dump(content, sort_keys=False, width=float("inf")))


def _base_model(origin: str) -> dict[str, str]:
    """The model of the Hub that was repaired, if it is one."""
    known = is_hub(origin) and not origin.startswith(TORCHVISION)
    return {"base_model": read_hub_name(origin).repository} if known else {}


def _data_name(card: Card, name: str) -> str:
    only = ", failures only" if name == "environment" and card["only_failures_judge"] else ""
    return f"{set_words(name, card['target'])}{only}, {card['results'][name]['images']:,} images"


def _worst_classes(card: Card) -> str:
    rows = []
    for name, found in card["results"].items():
        fell = [one for one in found["classes"] if one["recall_after"] < one["recall_before"]]
        rows += [_class_cells(set_words(name, card["target"]), one) for one in fell[:MOST_CLASSES]]
    if not rows:
        return "The recall of no class fell on the images that judged."
    header = ["images that judged", "class", "images", "recall before %", "after %", "change", "became wrong"]
    return (
        f"The classes whose recall fell most, up to {MOST_CLASSES} of each set of images. Where few images judge, a "
        f"fall may be chance.\n\n{_table(header, rows)}"
    )


def _class_cells(words: str, one: Effects) -> list[str]:
    return [
        markdown_text(words),
        markdown_text(one["name"]),
        f"{one['images']:,}",
        percent(one["recall_before"]),
        percent(one["recall_after"]),
        points(one["recall_after"] - one["recall_before"]),
        f"{one['broken']:,}",
    ]


def _unknown(card: Card) -> list[str]:
    """What nobody knows of the model."""
    judged = ", ".join(set_words(name, card["target"]) for name in card["results"])
    without = [card["classes"][label] for label in card["counts"]["classes_without_failures"]]
    lines = [
        f"Settings unlike the images that judged it ({judged}): nothing is known of it there.",
        "Images of other classes, or of other preprocessing: it names one of its classes for any image.",
        "What the original model must not be used for: a repair removes none of its faults but those measured here.",
    ]
    if card["only_failures_judge"]:
        lines.append(
            "Images of the environment that the original model had right: only failures judged, so what the repair "
            "breaks there is unknown."
        )
    if without:
        lines.append(
            f"Classes of which no failure was collected, so that none was repaired: {', '.join(without)}."
        )
    return lines


def _loading(card: Card) -> str:
    given = card["preprocessing"]
    resized = f"resized to {given['input_size']} pixels a side, " if given["input_size"] else ""
    fill = "load_weights(module, "
    code = LOAD.replace(fill, REBUILD + fill) if card["new_architecture"] else LOAD
    return (
        f"Images are RGB, {resized}scaled to [0, 1], less the mean {given['mean']}, and divided by {given['std']}. A "
        f"model that is a factory of your own must be importable.\n\n```python\n{code}```"
    )


def _data(card: Card) -> Iterable[str]:
    counts, found, limits = card["counts"], card["selection"], card["settings"].get("limits", {})
    yield f"Clean images: {card['data']}."
    yield (
        f"Learned from: {counts['collect'] - counts['validation']:,} failures of the environment; "
        f"{counts['validation']:,} others chose settings; {counts['fail']:,} judged."
    )
    if found:
        yield (
            f"Selected by: {found['images']:,} images of the environment and {found['clean_images']:,} clean images, "
            f"inside {', '.join(f'{key} {value}' for key, value in limits.items() if value not in (None, {}))}."
        )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; its cells are Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
