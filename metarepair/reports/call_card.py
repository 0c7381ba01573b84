"""The model card of a repair that no image judged, a call of `metarepair.repair`, and its report as an HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from metarepair.evaluation.bounds import share_interval
from metarepair.reports.card import Card, unjudged_card
from metarepair.reports.card_text import data_of, name_of, title_of, unknown_of
from metarepair.reports.headline import KINDS, NOT, OPEN
from metarepair.reports.html import without_paths
from metarepair.reports.outcome import taken_inside
from metarepair.reports.page import (
    block,
    bullets,
    details,
    heading,
    headline,
    html_page,
    html_table,
    paragraph,
)
from metarepair.reports.words import method_words, percent, points

NOT_JUDGED = (
    "No image judged this repair: measure the model on labelled images of the setting that this call was not given, "
    "before you take it."
)
VALIDATION, CLEAN = "validation", "clean images"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Accuracies, as fractions, of the given and of the repaired DNN on a set of images; used: for what it was."""

    name: str
    images: int
    before: float
    after: float
    used: str

    @property
    def fell(self) -> bool:
        """Whether the repair is worse on the images that were to choose it."""
        return self.name == VALIDATION and self.after < self.before

    @property
    def words(self) -> str:
        low, high = share_interval(round(self.after * self.images), self.images)
        return (
            f"{self.name.capitalize()}, {self.images:,} images, {self.used}: {percent(self.before)}% right before the "
            f"repair, {percent(self.after)}% after it (95% interval {percent(low)} to {percent(high)})."
        )


def call_card(
    *,
    method: str,
    measured: Iterable[Measured],
    selection: Mapping[str, Any] | None,
    notes: Iterable[str],
    settings: Mapping[str, Any],
    **known: Any,
) -> Card:
    """Return the card of a call; known: other keys of `unjudged_card`.

    selection: how the repair was chosen inside limits, as plain values.
    """
    sets = list(measured)
    fell = [
        f"The repair is worse than the given model on {one.images:,} images of validation: {percent(one.before)}% "
        f"right before it, {percent(one.after)}% after it."
        for one in sets
        if one.fell
    ]
    lines = [NOT_JUDGED, *(one.words for one in sets)]
    if all(one.name != CLEAN for one in sets):
        lines.append("What the repair breaks is unknown: no clean images were given to measure it.")
    return unjudged_card(
        verdict=" ".join([*fell, NOT_JUDGED]),
        judged_by=[*lines, *notes],
        measured=[asdict(one) for one in sets],
        method=method,
        method_words=method_words(method),
        selection=selection,
        selected=taken_inside({"methods": [{"method": method, "seed": 0, "selection": selection}]}),
        settings=without_paths(settings),
        **known,
    )


def call_page(card: Card) -> str:
    """Return the report of a call as an HTML page, made from its card alone."""
    name, sets = name_of(card), [Measured(**one) for one in card["measured"]]
    decision = NOT if any(one.fell for one in sets) else OPEN
    told = f"{name} was repaired in one call, without a run (method: {card['method_words']})."
    rows = [
        [
            one.name,
            f"{one.images:,}",
            percent(one.before),
            percent(one.after),
            points(one.after - one.before),
            one.used,
        ]
        for one in sets
    ]
    cost = card["cost"]
    return html_page(
        title_of(card),
        headline(decision, KINDS[decision], [card["verdict"], told], []),
        heading("What was measured", 2),
        html_table(["images", "number", "right before %", "right after %", "change", "used"], rows),
        bullets(card["judged_by"][1:]),
        heading("Limits", 2),
        bullets(card["selected"]) if card["selected"] else paragraph("No limits were set."),
        bullets(data_of(card)),
        heading("Cost", 2),
        paragraph(
            f"{cost['images_seen']:,} images went through the model to learn from (one counts once for each pass), in "
            f"{cost['gradient_steps']:,} gradient steps."
        ),
        heading("What nobody knows", 2),
        bullets(unknown_of(card)),
        details("Settings", [block(yaml.safe_dump(card["settings"], sort_keys=False))]),
        paragraph(f"Versions: {', '.join(f'{key} {value}' for key, value in card['versions'].items())}."),
    )
