"""Write a model card as README.md, in Hugging Face's form. Text from settings, data or plugins stays text.

Source: the form: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from metarepair.config.kit import PYTHON
from metarepair.reports.side_effects import Effects, effect_words
from metarepair.reports.words import percent, plain_words, points, set_words
from metarepair.weights.hub import TORCHVISION, is_hub, read_hub_name

Card = Mapping[str, Any]

MOST_CLASSES = 10  # of a set of images, in README.md; card.json has all
TASK = "image-classification"
LICENCE = (
    "# The licence, and the base_model on the Hub if it is not below, are for you to state: MetaRepair knows neither.\n"
    "# MetaRepair writes this file anew (report, fix, export, save): edit a copy.\n"
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
# Of a module that was given in Python, which no name stands for.
LOAD_MODULE = """\
import json
from pathlib import Path

from safetensors.torch import load_file

card = json.loads(Path("card.json").read_text(encoding="utf-8"))
module = ...  # build the original module here, by your own code
module.load_state_dict(load_file(card["weights"]["file"]))
module.eval()
"""
LOAD_TIMM = """\
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True).eval()  # from the Hub: "hf-hub:ORG/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
labels = model(torch.stack([transform(image) for image in images])).argmax(1)  # images: PIL images in RGB
"""
REGISTER = "import metarepair.models  # registers this architecture with timm\n"
# What builds an exported model.
TIMM_ALONE, TIMM_AND_OURS, NOT_TIMM = "timm", "timm, after import metarepair.models,", "own code"
DIGEST = re.compile("[0-9a-f]+")
# What Markdown, HTML, formulas, mentions or links begin with (`_` inside a word begins nothing), and, at the start of a
# text, a list or a rule.
MARKS = re.compile(
    r"[\\`*\[\]{}#|~<>&$!@]|_(?![^\W_])|(?<![^\W_])_|:(?=//)|(?<=www)\.|^[-+=]|^\d(?=\d*[.)])", re.IGNORECASE
)


def card_text(card: Card) -> str:
    """Return README.md: YAML of Hugging Face, then Markdown."""
    target = card.get("target")
    judged = [effect_words(set_words(name, str(target)), found) for name, found in card["results"].items()]
    parts = [
        f"---\n{LICENCE}{_front_matter(card)}---",
        f"# {markdown_text(title_of(card))}",
        markdown_text(card["verdict"]),
        "## What this is",
        _bullets(_origin(card)),
        "## How it was judged",
        _bullets([*card["judged_by"], *judged, *card["selected"]]),
        "## What it breaks",
        _worst_classes(card),
        "## What it must not be used for",
        _bullets(unknown_of(card)),
        "## How to load it",
        _loading(card),
        "## Data and settings",
        _bullets(data_of(card)),
        _inputs(card),
        "Limits, costs, all classes and all settings without paths: card.json, from which this page is made.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _inputs(card: Card) -> str:
    rows = [
        [markdown_text(key), value if DIGEST.fullmatch(str(value)) else markdown_text(value)]
        for key, value in card.get("inputs", {}).items()
    ]
    return _table(["made from", "digest"], rows) if rows else ""


def _origin(card: Card) -> Iterable[str]:
    """What the model is, and what it was made from, as far as it is known."""
    weights, inputs = card["weights"], card.get("inputs", {})
    yield (
        f"An image classifier: {name_of(card)}, of {len(card['classes']):,} classes, which card.json lists in order."
    )
    if card.get("method"):
        where = f", for the environment {plain_words(card['target'])}" if card.get("target") else ""
        yield (
            f"Repaired by: {card['method_words']}, seed {card['seed']}{where}; {card['cost']['gradient_steps']:,} "
            "gradient steps."
        )
    if "deployed" in inputs:
        yield (
            f"Made from: {card['made_from']}, whose tensors have the digest {inputs['deployed']} (BLAKE2b-128 of names "
            "and bytes)."
        )
    yield (
        f"This file: {weights['file']}, {weights['size_bytes']:,} bytes, BLAKE2b-128 {weights['blake2b_128']} (b2sum "
        "-l 128)."
    )
    yield f"Versions: {', '.join(f'{name} {version}' for name, version in card['versions'].items())}."


def markdown_text(text: object) -> str:
    """Return text from outside as one line of Markdown in which every character stands for itself.

    Entities are text to every reader, in tables, too; a backslash is not, since formulas begin with it.
    """
    return MARKS.sub(lambda found: f"&#{ord(found[0])};", _one_line(text))


def _one_line(text: object) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())


def name_of(card: Card) -> str:
    """Return the name of the DNN; for a module that was given in Python, that of its class."""
    return str(card["model"]["name"]).removeprefix(PYTHON)


def title_of(card: Card) -> str:
    """Return the title of a card: `resnet8_cifar repaired for night`."""
    where = f" for {plain_words(card['target'])}" if card.get("target") else ""
    return _one_line(f"{name_of(card)} repaired{where}")


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
    by_timm = card.get("built_by") == TIMM_ALONE
    content: dict[str, Any] = {
        "license": "other",
        "library_name": "timm" if by_timm else "metarepair",
        "pipeline_tag": TASK,
        **_base_model(card.get("made_from", "")),
        "tags": ["metarepair", "model-repair", TASK, *(["timm"] if by_timm else [])],
    }
    if results:
        content["model-index"] = [{"name": title_of(card), "results": results}]
    return str(yaml.safe_dump(content, sort_keys=False, width=float("inf")))


def _base_model(origin: str) -> dict[str, str]:
    """The model of the Hub that was repaired, if it is one."""
    known = is_hub(origin) and not origin.startswith(TORCHVISION)
    return {"base_model": read_hub_name(origin).repository} if known else {}


def _data_name(card: Card, name: str) -> str:
    only = ", failures only" if name == "environment" and card["only_failures_judge"] else ""
    return f"{set_words(name, card['target'])}{only}, {card['results'][name]['images']:,} images"


def _worst_classes(card: Card) -> str:
    if not card["results"]:
        return "Unknown by class: no images judged it."
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


def unknown_of(card: Card) -> list[str]:
    """Say what nobody knows of the model."""
    judged = ", ".join(set_words(name, card["target"]) for name in card["results"]) or "there were none"
    none_failed = (card.get("counts") or {}).get("classes_without_failures", [])
    without = [card["classes"][label] for label in none_failed]
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
    normalised = (
        "normalised as for the original model; mean and standard deviation were not told"
        if given["mean"] is None
        else f"scaled to [0, 1], less the mean {given['mean']}, and divided by {given['std']}"
    )
    return f"Images are RGB, {resized}{normalised}. {_needed(card)}\n\n```python\n{_load_code(card)}```"


def _needed(card: Card) -> str:
    """Say what must be installed to load the model."""
    if card.get("built_by") == TIMM_ALONE:
        return "timm alone builds it."
    if card.get("built_by") == TIMM_AND_OURS:
        return "timm builds it where MetaRepair is installed, whose architecture it is."
    other = "timm alone cannot build it. " if "built_by" in card else ""
    if card["model"]["name"].startswith(PYTHON):
        return f"{other}The code of the module is not part of this folder."
    return f"{other}A model that is a factory of your own must be importable."


def _load_code(card: Card) -> str:
    built_by = card.get("built_by")
    if built_by in (TIMM_ALONE, TIMM_AND_OURS):
        return LOAD_TIMM.replace(
            "import torch\n", "import torch\n" + (REGISTER if built_by == TIMM_AND_OURS else "")
        )
    given = card["model"]["name"].startswith(PYTHON)
    code, fill = (LOAD_MODULE, "module.load_state_dict(") if given else (LOAD, "load_weights(module, ")
    return code.replace(fill, REBUILD + fill) if card["new_architecture"] else code


def data_of(card: Card) -> Iterable[str]:
    """Say what the repair learned from, and what selected it."""
    counts, found = card.get("counts"), card.get("selection")
    limits = card.get("settings", {}).get("limits", {})
    if card.get("data"):
        yield f"Clean images: {card['data']}."
    if counts:
        given = "failures of the environment" if counts["fail"] else "images given as failures"
        yield (
            f"Learned from: {counts['collect'] - counts['validation']:,} {given}; "
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
