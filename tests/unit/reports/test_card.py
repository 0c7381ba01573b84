"""Test model cards: the verdict first, text from outside that stays text, and a model that loads as the card says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown import markdown
from safetensors.torch import load_file, save_file

from made_result import made_result
from metarepair.evaluation.side_effects import JudgedImages, fallen_classes, judged_sets, side_effects_of
from metarepair.reports import load_results
from metarepair.reports.card import CARD_FILES, card_of_repair, read_card, write_cards
from metarepair.reports.card_text import LICENCE, LOAD, card_text, markdown_text
from metarepair.runs.layout import Run
from metarepair.weights import resolve_weights
from tasks.datasets import CIFAR10_CLASSES
from tasks.storage.manifest import file_hash, write_manifest

TARGET, PHOTOGRAPH = "photographs", "IMG_0042.png"
HOSTILE = (
    "<script>alert(1)</script>",
    "a | b",
    "*bold* _too_ ~~gone~~",
    "`code`",
    "[x](https://evil.example)",
    "# heading",
    "two\n\n---\nlines",
    "$x_{2}$ \\(y\\)",
    "- item",
    "1. www.evil.example @you",
)


def made_run(root: Path, *, broken: int = 0, classes: tuple[str, ...] = HOSTILE, **changed: Any) -> Run:
    """A run with a repair by MetaRepair that is taken, and breaks `broken` of 40 clean images of the first class."""
    run, result = Run(root), made_result(TARGET, seeds=(0,))
    labels_N = np.repeat(np.arange(10), 40)
    after_N = np.where(np.arange(400) < broken, 1, labels_N)
    common: dict[str, Any] = {
        "image_ids_N": np.arange(400),
        "severities_N": np.zeros(400, np.int64),
        "kinds_N": np.full(400, ""),
        "labels_N": labels_N,
        "confidence": np.full((2, 400), 0.9, np.float32),
    }
    photographs = np.stack([np.where(np.arange(400) % 10 == 0, (labels_N + 1) % 10, labels_N), labels_N])
    seen = [
        JudgedImages(name="clean", classes=np.stack([labels_N, after_N]), **common),
        JudgedImages(name=TARGET, classes=photographs, files=(PHOTOGRAPH,) * 400, **common),
    ]
    effects = side_effects_of(judged_sets(seen), 0, classes)
    result["methods"] = [row for row in result["methods"] if row["method"] != "finetune"]
    for row in result["methods"]:
        row["corrupted_by_severity"], row["fallen_classes"] = {"0": row["corrupted"]}, []
    before, other, row = result["methods"]
    row["fallen_classes"] = fallen_classes(effects)
    point = {"weight": 0.5, "episode": None, "environment": 0.9, "clean": 0.9, "broken": 0.0}
    point |= {"broken_bound": 0.01, "recall_falls": {}, "outside": {}}
    selection = {"kept": False, "images": 100, "clean_images": 200, "point": point}
    selection |= {"environment_before": 0.8, "clean_before": 0.9}
    before["selection"] = other["selection"] = row["selection"] = selection
    result |= {
        "choice": {"method": "metarepair", "seed": 0, "kept": False},
        "judging": {"images": 400, "clean_images": 400, "protocol": "own images"},
        "preprocessing": {"mean": [0.49, 0.48, 0.44], "std": [0.25, 0.24, 0.26], "input_size": None},
        "d_collect": {"collect": 190, "fail": 40, "validation": 37, "classes_without_failures": [0]},
    }
    result["config"] |= {
        "name": HOSTILE[0],
        "model": {
            "name": "resnet8_cifar",
            "stem": "imagenet",
            "entry": None,
            "weights": "/home/me/nets/mine.pth",
        },
        "environments": {TARGET: {"images": "/home/me/photos", "left_out": [PHOTOGRAPH]}},
        "kit": "kits/mine",
        "limits": {"max_clean_drop": 0.005, "protected_classes": {}},
    }
    folder = run.repaired(TARGET)
    for row in result["methods"]:
        (weights := run.root / row["weights"]).parent.mkdir(parents=True)
        weights.write_bytes(b"weights")
    result |= changed
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    told = {"class_names": classes, "repairs": {"bn_adapt/0": effects, "metarepair/0": effects}}
    (folder / "side_effects.json").write_text(json.dumps(told), encoding="utf-8")
    inputs = {"deployed": "4d1857", "test": "072436", "environment <b>x</b>": "165fa4"}
    write_manifest(folder, stage=f"repair {TARGET}", config={}, inputs=inputs, files=["result.json"])
    return run


def cards(run: Run) -> tuple[str, dict[str, Any]]:
    """README.md and the content of card.json beside the repair by MetaRepair."""
    write_cards(run, load_results(run, [TARGET])[0])
    folder = run.repaired(TARGET) / "metarepair" / "0"
    readme, data = ((folder / name).read_text(encoding="utf-8") for name in CARD_FILES)
    return readme, json.loads(data)


def body(readme: str) -> str:
    return readme.split("\n---\n", 1)[1]


def test_a_destroyed_class_is_the_first_thing_that_the_card_says(tmp_path: Path) -> None:
    readme, card = cards(made_run(tmp_path, broken=35, classes=CIFAR10_CLASSES))
    first = "The repair loses a class: airplane is found in 12.5% of 40 images (clean), before the repair in 100.0%."
    assert card["verdict"].startswith(first)
    assert next(iter(card)) == "verdict"
    heading, verdict = body(readme).split("\n\n")[:2]
    assert heading.strip() == "# resnet8_cifar repaired for photographs"
    assert verdict.startswith(first)
    assert "Do not take the repaired model" in verdict
    assert "| clean | airplane | 40 | 100.0 | 12.5 | −87.5 points | 35 |" in readme
    assert "loses" not in cards(made_run(tmp_path / "other", classes=CIFAR10_CLASSES))[1]["verdict"]


def test_the_card_says_what_a_stranger_needs(tmp_path: Path) -> None:
    readme, card = cards(run := made_run(tmp_path, broken=2, classes=CIFAR10_CLASSES))
    weights = run.repaired(TARGET) / "metarepair" / "0" / "model.safetensors"
    assert card["weights"]["blake2b_128"] == file_hash(weights)
    for told in (
        file_hash(weights),
        "Made from: mine.pth, whose tensors have the digest 4d1857",
        "for the environment photographs",
        "Judged by 400 of your images",
        "400 images, 40 became right and 0 wrong: 90.0% → 100.0%, +10.0 points (95% interval",
        "clean: of 400 images, 0 became right and 2 wrong",
        "taken at weight 0.5",
        "Learned from: 153 failures of the environment; 37 others chose settings; 40 judged.",
        "100 images of the environment and 200 clean images, inside max_clean_drop 0.005.",
        "nothing is known of it there",
        "no failure was collected, so that none was repaired: airplane",
        "| test | 072436 |",
        "torch 2.9",
    ):
        assert told in readme, told
    assert not (run.repaired(TARGET) / "none" / "0" / "README.md").exists()


def test_readme_is_made_from_card_json_alone(tmp_path: Path) -> None:
    readme, card = cards(made_run(tmp_path, broken=35))
    assert card_text(card) == readme


def test_the_front_matter_is_that_of_hugging_face(tmp_path: Path) -> None:
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    readme, card = cards(made_run(tmp_path, broken=4))
    front = readme.split("---\n")[1]
    assert front.startswith(LICENCE)
    content = yaml.safe_load(front)
    assert content["license"] == "other"
    assert content["pipeline_tag"] == "image-classification"
    assert "base_model" not in content
    name, results = model_index_to_eval_results(content["model-index"])
    assert name == "resnet8_cifar repaired for photographs"
    found = [(one.dataset_name, one.metric_name, one.metric_value) for one in results]
    assert found[0] == ("clean, 400 images", "accuracy after the repair", card["results"]["clean"]["after"])
    assert found[2][2] == card["results"]["environment"]["after"] == 1.0
    assert ModelCardData(**content).to_dict()["library_name"] == "metarepair"


def test_a_model_of_the_hub_is_named_with_its_commit_as_the_origin(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    result, origin = load_results(run, [TARGET])[0], f"hf-hub:me/net@{'a' * 40}"
    result["config"]["model"] |= {"name": origin, "weights": origin}
    write_cards(run, result)
    readme, data = (
        (run.repaired(TARGET) / "metarepair" / "0" / name).read_text(encoding="utf-8") for name in CARD_FILES
    )
    assert yaml.safe_load(readme.split("---\n")[1])["base_model"] == "me/net"
    assert f"Made from: hf-hub:me/net&#64;{'a' * 40}, whose tensors have the digest" in readme
    assert json.loads(data)["settings"]["model"]["weights"] == json.loads(data)["made_from"] == origin


@pytest.mark.parametrize("name", [*HOSTILE, "+ item", "= x", "&lt;b&gt;", "![i](j)", "a\u2028# b\x00", "***"])
def test_text_from_outside_stays_text(name: str) -> None:
    line = markdown_text(name)
    assert "\n" not in line
    page = markdown(f"{line}\n\n- {line}\n\n| x | y |\n| --- | --- |\n| {line} | z |", extensions=["tables"])
    assert set(re.findall(r"<(\w+)", page)) <= {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.count("<td>") == 2
    assert page.count("<li>") == 1


def test_names_in_a_card_stay_text(tmp_path: Path) -> None:
    run = made_run(tmp_path, broken=40)
    result = load_results(run, [TARGET])[0]
    result["config"]["model"]["name"] = f"nets:{HOSTILE[6]}"
    row = result["methods"][-1]
    row["method"] = result["choice"]["method"] = HOSTILE[0]
    told = json.loads((run.repaired(TARGET) / "side_effects.json").read_text(encoding="utf-8"))
    told["repairs"][f"{HOSTILE[0]}/0"] = told["repairs"]["metarepair/0"]
    (run.repaired(TARGET) / "side_effects.json").write_text(json.dumps(told), encoding="utf-8")
    write_cards(run, result)
    readme = (run.repaired(TARGET) / "metarepair" / "0" / "README.md").read_text(encoding="utf-8")
    page = markdown(body(readme), extensions=["tables", "fenced_code"])
    assert len(re.findall("<h1", page)) == 1
    assert not set(re.findall(r"<(\w+)", page)) & {"script", "b", "em", "strong", "a", "del", "hr", "img"}
    assert page.count("<table>") == 2
    assert yaml.safe_load(readme.split("---\n")[1])["model-index"][0]["name"].startswith(
        "nets:two --- lines repaired"
    )


def test_no_card_holds_a_path_or_the_name_of_a_photograph(tmp_path: Path) -> None:
    for text in map(str, cards(made_run(tmp_path, broken=35))):
        for secret in ("/home/me", "kits/mine", PHOTOGRAPH, str(tmp_path)):
            assert secret not in text


def test_a_repair_that_is_not_taken_says_so_first(tmp_path: Path) -> None:
    other = made_run(tmp_path / "a", choice={"method": "bn_adapt", "seed": 0, "kept": False})
    assert cards(other)[1]["verdict"].startswith("This repair was not taken: BN-adapted, seed 0 was better")
    run = made_run(tmp_path / "b", choice={"method": "none", "seed": 0, "kept": True})
    result = load_results(run, [TARGET])[0]
    for row in result["methods"]:
        row["selection"] |= {"kept": True, "nearest": []}
    write_cards(run, result)
    card = json.loads((run.repaired(TARGET) / "metarepair" / "0" / "card.json").read_text(encoding="utf-8"))
    assert card["verdict"].endswith("these are the deployed weights, unchanged.")


def test_the_card_of_kept_weights_says_why_they_are_kept(tmp_path: Path) -> None:
    run = made_run(tmp_path, choice={"method": "none", "seed": 0, "kept": True})
    result = load_results(run, [TARGET])[0]
    for row in result["methods"]:
        row["selection"] |= {"kept": True, "nearest": []}
    told = json.loads((run.repaired(TARGET) / "side_effects.json").read_text(encoding="utf-8"))
    told["repairs"]["none/0"] = told["repairs"]["metarepair/0"]
    (run.repaired(TARGET) / "side_effects.json").write_text(json.dumps(told), encoding="utf-8")
    card = card_of_repair(run, result, "none", 0)
    assert card is not None
    assert card["verdict"].startswith("Keep your model: no repair gains anything inside your limits")


@pytest.mark.parametrize("changed", ["", "x"])
def test_a_card_is_read_only_for_the_very_file(tmp_path: Path, changed: str) -> None:
    run = made_run(tmp_path)
    _, card = cards(run)
    weights = run.repaired(TARGET) / "metarepair" / "0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + changed.encode())
    assert read_card(weights) == (None if changed else card)
    assert read_card(tmp_path / "model.safetensors") is None


def test_without_limits_a_lost_class_is_said_first_all_the_same(tmp_path: Path) -> None:
    run = made_run(tmp_path, broken=35)
    result = load_results(run, [TARGET])[0]
    del result["choice"], result["methods"][-1]["selection"]
    write_cards(run, result)
    card = json.loads((run.repaired(TARGET) / "metarepair" / "0" / "card.json").read_text(encoding="utf-8"))
    assert card["verdict"].startswith("The repair loses a class: ")
    assert "for you to decide" in card["verdict"]


def test_only_failures_that_judge_are_said_to_leave_the_cost_unknown(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    write_cards(run, load_results(run, [TARGET])[0], only_failures=True)
    readme = (run.repaired(TARGET) / "metarepair" / "0" / "README.md").read_text(encoding="utf-8")
    assert "so what the repair breaks there is unknown" in readme
    assert "photographs, failures only, 400 images" in readme


def test_the_handed_over_file_has_a_card_of_its_own(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    (run.root / "repaired.pth").write_bytes(b"others")
    write_cards(run, load_results(run, [TARGET])[0], handed_over=run.root / "repaired.pth")
    card = json.loads((run.root / "card.json").read_text(encoding="utf-8"))
    assert card["weights"]["file"] == "repaired.pth"
    assert card["weights"]["blake2b_128"] == file_hash(run.root / "repaired.pth")
    assert not (run.repaired(TARGET) / "metarepair" / "0" / "README.md").exists()


def test_a_repair_of_an_older_version_gets_no_card(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    result = load_results(run, [TARGET])[0]
    del result["preprocessing"]
    write_cards(run, result)
    assert not list(run.root.rglob("README.md"))


def test_the_model_loads_as_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path, classes=CIFAR10_CLASSES)
    folder = run.repaired(TARGET) / "metarepair" / "0"
    tensors = load_file(resolve_weights("shipped:resnet8_cifar10"))
    save_file(tensors, folder / "model.safetensors")
    readme, _ = cards(run)
    code = readme.split("```python\n")[1].split("```")[0]
    assert code == LOAD
    monkeypatch.chdir(folder)
    images = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    found: dict[str, Any] = {"images": images}
    exec(code, found)  # the card's own code
    assert found["labels"].shape == (4,)
    assert found["model"].mean == [0.49, 0.48, 0.44]
    assert all(torch.equal(value, tensors[key]) for key, value in found["module"].state_dict().items())
