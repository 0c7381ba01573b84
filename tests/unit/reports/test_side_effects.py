"""Test what a report tells of a repair's side effects: a lost class first, all files, and no text that acts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_result import made_result
from metarepair.evaluation.side_effects import JudgedImages, fallen_classes, judged_sets, side_effects_of
from metarepair.reports.headline import ADOPT, CHECK, KEEP, NOT, OPEN, headline_of
from metarepair.reports.html import write_report
from metarepair.reports.outcome import outcome_of
from metarepair.reports.side_effects import OLDER, Images
from metarepair.reports.table import verdict
from metarepair.runs.layout import Run
from tasks.datasets import ArrayDataset
from tasks.environments import UserImages
from tasks.splits import JUDGE

HOSTILE = ("<script>alert(1)</script>", "=1+1", "$x_{2}$ | *dog*")
TARGET = "photographs"


def seen(broken: int) -> list[JudgedImages]:
    """Clean images and photographs, 40 of each class; the repair breaks so many clean ones of the first class."""
    labels_N = np.repeat(np.arange(3), 40)
    before_N = np.where(np.arange(120) % 10 == 0, (labels_N + 1) % 3, labels_N)
    after_N = np.where(np.arange(120) < broken, 1, labels_N)
    common: dict[str, Any] = {
        "image_ids_N": np.arange(120),
        "severities_N": np.zeros(120, np.int64),
        "labels_N": labels_N,
        "confidence": np.full((2, 120), 0.9, np.float32),
    }
    return [
        JudgedImages(name="clean", kinds_N=np.full(120, ""), classes=np.stack([labels_N, after_N]), **common),
        JudgedImages(
            name=TARGET,
            kinds_N=np.array([f"group {n % 3}" for n in range(120)]),
            classes=np.stack([before_N, labels_N]),
            files=tuple(f"={HOSTILE[0]}{n}.png" for n in range(120)),
            **common,
        ),
    ]


def made(root: Path, broken: int) -> tuple[Run, dict[str, Any]]:
    """A run with one repair, and its result."""
    run, result, images = Run(root), made_result(TARGET, seeds=(0,)), seen(broken)
    row = next(row for row in result["methods"] if row["method"] == "metarepair")
    row.update(d_fail=1.0, break_rate_corrupted=0.0)
    result["choice"] = {"method": "metarepair", "seed": 0, "kept": False}
    result["judging"] = {"images": 120, "clean_images": 120, "protocol": "own images"}
    effects = side_effects_of(judged_sets(images), 0, HOSTILE)
    row["fallen_classes"] = fallen_classes(effects)
    folder, key = run.repaired(TARGET), f"{row['method']}/{row['seed']}"
    folder.mkdir(parents=True)
    told = {"class_names": HOSTILE, "repairs": {key: effects}}
    (folder / "side_effects.json").write_text(json.dumps(told), encoding="utf-8")
    table = {
        "environment": np.repeat(["clean", TARGET], 120),
        "file": [None] * 120 + list(images[1].files),
        **{
            name: np.concatenate([getattr(one, f"{plural}_N") for one in images])
            for name, plural in (
                ("image_id", "image_ids"),
                ("severity", "severities"),
                ("kind", "kinds"),
                ("label", "labels"),
            )
        },
    }
    for number, name in enumerate(("before", key)):
        table[name] = np.concatenate([one.classes[number] for one in images])
        table[f"{name} confidence"] = np.concatenate([one.confidence[number] for one in images])
    pq.write_table(pa.table(table), folder / "judged_images.parquet")
    return run, result


def sources() -> Images:
    """Where the pixels of `seen` are."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3)).astype(np.uint8)
    labels_N = np.repeat(np.arange(3), 40)
    clean = ArrayDataset(
        name="made",
        split="test",
        classes=HOSTILE,
        image_ids_N=np.arange(120),
        labels_N=labels_N,
        images_NHWC=pixels,
    )
    users = UserImages(
        name=TARGET,
        classes=HOSTILE,
        labels_N=labels_N,
        groups_N=np.arange(120) % 3,
        images_NHWC=pixels,
        names=tuple(str(n) for n in range(120)),
        digests_N=np.arange(120, dtype=np.uint64),
        hashes_N=np.arange(120, dtype=np.uint64),
        parts_N=np.full(120, JUDGE, np.int8),
    )
    return Images(environment=lambda _: users, clean=lambda: clean)


def test_a_destroyed_class_is_the_first_thing_that_is_said(tmp_path: Path) -> None:
    run, result = made(tmp_path, broken=35)
    found = "is found in 12.5% of 40 images (clean), before the repair in 100.0%"
    first = f"The repair loses a class: {HOSTILE[0]} {found}"
    outcome = outcome_of(result)
    assert outcome.words.startswith(first)
    assert "Do not take the repaired model" in outcome.words
    assert verdict(result)[0].startswith(first)
    del result["choice"]
    assert verdict(result)[0].startswith(first)
    page = write_report(run, [result], sources()).read_text(encoding="utf-8")
    assert 0 < page.index("The repair loses a class") < page.index("<table")
    assert "a class" not in outcome_of(made(tmp_path / "other", broken=2)[1]).words


def test_a_class_that_is_worse_is_a_doubt_and_does_not_decide(tmp_path: Path) -> None:
    outcome = outcome_of(made(tmp_path, broken=15)[1])
    assert outcome.advised
    assert outcome.words.startswith("Take the repaired model")
    assert f"It is worse at a class: {HOSTILE[0]} is found in 62.5% of 40 images (clean)" in outcome.words


@pytest.mark.parametrize(
    ("changed", "decision", "says"),
    [
        ({}, ADOPT, "gets 100 of 100 images of the environment right, before 90"),
        ({"broken": 15}, CHECK, "It is worse at a class"),
        ({"broken": 35}, NOT, "The repair loses a class"),
        ({"kept": True}, KEEP, "Keep your model"),
        ({"without_choice": True}, OPEN, "No limits were set"),
        ({"without_choice": True, "broken": 35}, NOT, "The repair loses a class"),
        ({"only_failures": True}, ADOPT, "100 failures (all that judge are failures)"),
    ],
)
def test_the_first_screen_says_what_to_do_and_why(
    changed: dict[str, Any], decision: str, says: str, tmp_path: Path
) -> None:
    run, result = made(tmp_path, broken=changed.get("broken", 2))
    if changed.get("kept"):
        result["choice"]["kept"] = True
    if changed.get("without_choice"):
        del result["choice"]
    result["d_collect"]["fail"] = 120 if changed.get("only_failures") else 12
    first = headline_of(run, result)
    assert first.decision == decision
    assert says in " ".join(first.sentences)
    assert len(first.numbers) == (0 if changed.get("kept") else 3)
    if decision == ADOPT and not changed:
        assert [number.value for number in first.numbers] == ["90.0 → 100.0", "100.0 → 98.3", "1.7"]
        assert first.numbers[2].interval == "95% interval 0.5 to 5.9; 2 of 120"


def test_the_section_tells_what_changed_and_writes_every_image(tmp_path: Path) -> None:
    run, result = made(tmp_path, broken=35)
    page = write_report(run, [result], sources()).read_text(encoding="utf-8")
    assert "clean: of 120 images, 0 became right and 35 wrong: 100.0% → 70.8%" in page
    assert "photographs: of 120 images, 12 became right and 0 wrong: 90.0% → 100.0%" in page
    assert "group 2" in page
    changed = (run.report / "photographs_changed.csv").read_text(encoding="utf-8").splitlines()
    assert len(changed) == 1 + 35 + 12
    classes = (run.report / "photographs_clean_classes.csv").read_text(encoding="utf-8").splitlines()
    assert len(classes) == 1 + 3
    assert (run.report / "photographs_changed.png").read_bytes().startswith(b"\x89PNG")


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    run, result = made(tmp_path, broken=35)
    page = write_report(run, [result], sources()).read_text(encoding="utf-8")
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(drawings) == 7
    for text in (page, *drawings):
        assert "<script" not in text
    assert any("$x_{2}$" in one for one in drawings)
    for path in run.report.glob("*.csv"):
        assert not re.search(r'(^|,)"?[=+@]', path.read_text(encoding="utf-8"), re.MULTILINE), path.name


def test_without_images_no_photograph_is_shown_or_named(tmp_path: Path) -> None:
    run, result = made(tmp_path, broken=35)
    write_report(run, [result], sources())
    page = write_report(run, [result], sources(), show_images=False).read_text(encoding="utf-8")
    changed = (run.report / "photographs_changed.csv").read_text(encoding="utf-8")
    assert ".png" not in changed
    assert "became wrong" in page
    assert not (run.report / "photographs_changed.png").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_nothing_is_told_of_a_repair_that_is_not_taken_or_of_an_older_version(
    kept: bool, tmp_path: Path
) -> None:
    run, result = made(tmp_path, broken=0)
    (run.repaired(TARGET) / "side_effects.json").unlink()
    result["choice"]["kept"] = kept
    for row in result["methods"]:
        row.pop("fallen_classes", None)
        before = {"environment_before": 0.8, "clean_before": 0.9, "images": 200, "clean_images": 100}
        row["selection"] = before | {"kept": kept, "nearest": [], "point": POINT}
    page = write_report(run, [result], sources()).read_text(encoding="utf-8")
    assert ("<h3>Side effects" in page) != kept
    assert (OLDER in page) != kept


POINT = {
    "weight": 1.0,
    "episode": None,
    "environment": 0.83,
    "clean": 0.89,
    "broken": 0.03,
    "broken_bound": 0.045,
    "recall_falls": {},
    "outside": {},
}
