"""Check `metarepair fix` as a user calls it: photographs and clean images in folders, no YAML file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.environments import write_environment
from kits import KIT
from metarepair.cli import main
from metarepair.config.load import load_config
from metarepair.data.save_images import save_images
from metarepair.data.workspace import load_surroundings
from metarepair.fixing.plan import Speeds
from metarepair.stages import fix as fix_stage
from metarepair.weights import resolve_weights
from tasks.datasets import load_dataset
from tasks.splits.digests import Digests, pixel_digests
from tasks.splits.parts import JUDGE, LEARN, SELECT

PHOTOGRAPHS, CLEAN = 160, 160
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of one recipe, other clean images, and the shipped weights in a torch.save file of a user."""
    folder = tmp_path_factory.mktemp("material")
    data = load_dataset("cifar10_sample", "test")
    write_environment(folder, data, recipe="colour", images=PHOTOGRAPHS, seed=0)
    (folder / "colour" / "labels.csv").unlink()
    for photograph in [path for path in sorted((folder / "colour").rglob("*")) if path.is_file()]:
        with suppress(OSError), Image.open(photograph) as opened:
            opened.load()  # two cannot be read
            target = folder / "readable" / photograph.relative_to(folder / "colour")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photograph, target)
    train = load_dataset("cifar10_sample", "train")
    for row in range(CLEAN):
        path = folder / "clean" / train.classes[train.labels_N[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train.images_NHWC[row]).save(path)
    from safetensors.torch import load_file

    weights = load_file(resolve_weights("shipped:resnet8_cifar10"))
    torch.save({"epoch": 7, "net": weights}, folder / "mine.pth")
    return folder


@pytest.fixture
def run(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Call `fix` with a model of the user's own, on a machine of known speed; return exit code and output.

    joint: whether the budget buys joint training, which takes two thirds of the time of a test.
    """

    def call(
        *options: str,
        images: tuple[str, str] = ("--images", "colour"),
        clean: bool = True,
        joint: bool = False,
    ) -> tuple[int, str]:
        speeds = Speeds(
            step_s=1.0 if joint else 10.0,
            image_s=1e-5,
            learned_image_s=1e-3,
            mined_image_s=1.0,
            task_s=1.0,
            support_images=100,
        )
        monkeypatch.setattr(fix_stage, "measure", lambda *_: (speeds, 1))
        words = [
            *(images[0], str(material / images[1])),
            *(("--clean", str(material / "clean")) if clean else ()),
            *("--weights", str(material / "mine.pth")),
            *("--model", "metarepair.models.resnet8:ResNet8", "--out", str(tmp_path / "repaired")),
            *("--mean", "0.4914", "0.4822", "0.4465", "--std", "0.2470", "0.2435", "0.2616"),
            *("--budget", "90s", *options),
        ]
        capsys.readouterr()
        code = main(["fix", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def result_in(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "repaired" / "photographs" / "result.json").read_text("utf-8"))
    return found


def test_a_repair_is_handed_over_in_the_form_that_the_weights_came_in(
    run: Run, material: Path, tmp_path: Path
) -> None:
    root = tmp_path / "repaired"
    code, said = run("--max-clean-drop", "0.9", joint=True)
    assert code == 0, said
    assert re.search("A budget of 1 min 30 s buys fine-tuning for .* joint training for", said)
    for note in (
        "the weights are its entry 'net'",
        "of 40 clean test images",
        "to learn from: ",
        "32 judge, ",
    ):
        assert said.count(note) == 1, note
    assert "Take the repaired model" in said
    result = result_in(root)
    choice = result["choice"]
    before, after = (
        torch.load(path, weights_only=True) for path in (material / "mine.pth", root / "repaired.pth")
    )
    assert after["epoch"] == before["epoch"]
    assert list(after["net"]) == list(before["net"])
    assert any(not torch.equal(after["net"][key], value) for key, value in before["net"].items())
    assert str(root / "repaired.pth") in said
    handed_over = json.loads((root / "fix.json").read_text("utf-8"))["handed_over"]
    assert handed_over == ["README.md", "card.json", "repaired.pth"]
    card = json.loads((root / "card.json").read_text("utf-8"))
    assert card["verdict"] in said
    assert (card["made_from"], card["weights"]["file"]) == ("mine.pth", "repaired.pth")
    models = [path.parent for path in (root / "repaired").rglob("model.safetensors")]
    assert [(folder / "README.md").is_file() for folder in models] == [
        folder.parts[-2] != "none" for folder in models
    ]
    for path in root.rglob("card.json"):
        assert str(material) not in path.read_text("utf-8")
    assert f"{choice['method']}" in result["config"]["repair"]["methods"]
    assert (root / "report" / "index.html").is_file()
    # MetaRepair is not affordable, so nothing was mined or trained for it.
    assert "metarepair" not in result["config"]["repair"]["methods"]
    assert not (root / "experiences").exists()
    assert not (root / "meta").exists()


def test_weights_are_kept_with_an_exit_code_of_their_own(run: Run, tmp_path: Path) -> None:
    code, said = run("--min-gain", "0.9")
    assert code == 3
    assert "Keep your model: " in said
    assert not [*(tmp_path / "repaired").glob("repaired.*")]
    theirs = tmp_path / "repaired" / "repaired.notes.txt"
    theirs.write_text("mine", encoding="utf-8")
    assert run("--min-gain", "0.9", "--keep-ok")[0] == 0
    assert theirs.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("restart", [(), ("--restart",)])
def test_weights_of_the_users_own_are_not_replaced(
    run: Run, tmp_path: Path, restart: tuple[str, ...]
) -> None:
    theirs = tmp_path / "repaired" / "repaired.pth"
    theirs.parent.mkdir()
    theirs.write_bytes(b"mine")
    code, said = run(*restart)
    assert code == 2
    assert "Move it away, or give another --out" in said
    assert [*theirs.parent.iterdir()] == [theirs]
    assert theirs.read_bytes() == b"mine"


def test_a_readme_of_the_users_own_is_not_replaced(run: Run, tmp_path: Path) -> None:
    theirs = tmp_path / "repaired" / "README.md"
    theirs.parent.mkdir()
    theirs.write_text("mine", encoding="utf-8")
    code, said = run()
    assert code == 2
    assert f"{theirs} exists" in said
    assert theirs.read_text(encoding="utf-8") == "mine"


def test_a_restart_deletes_the_weights_that_were_handed_over_and_no_others(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "repaired"
    root.mkdir()
    for name in ("repaired.pth", "repaired.safetensors", "repaired.txt"):
        (root / name).write_bytes(b"weights")
    record = {"handed_over": ["repaired.pth", "repaired.safetensors", "../mine.pth", "fix.py"]}
    (root / "fix.json").write_text(json.dumps(record), encoding="utf-8")
    code, said = run("--restart", "--budget", "2s")
    assert code == 2
    assert "--budget 2s is too little" in said
    assert [path.name for path in root.glob("repaired.*")] == ["repaired.txt"]
    assert not (root / "fix.json").exists()


@pytest.mark.parametrize("option", ["--weights", "--images", "--holdout", "--clean"])
def test_what_lies_inside_out_is_refused_before_anything_is_deleted(
    run: Run, material: Path, tmp_path: Path, option: str
) -> None:
    root = tmp_path / "repaired"
    inside = root / ("repaired.pth" if option == "--weights" else "environments")
    if option == "--weights":
        root.mkdir()
        shutil.copy(material / "mine.pth", inside)
    else:
        shutil.copytree(material / "clean", inside)
    code, said = run(option, str(inside), "--restart")
    assert code == 2
    assert f"lies inside --out {root}" in said
    assert inside.exists()
    assert not (root / "fix.yaml").exists()


def test_a_class_that_does_not_exist_cannot_be_protected(run: Run, tmp_path: Path) -> None:
    code, said = run("--protect", "nosuch=0.1")
    assert code == 2
    assert "there is no class 'nosuch'" in said
    assert not (tmp_path / "repaired").exists()


def test_not_all_failures_can_be_dropped(run: Run, tmp_path: Path) -> None:
    code, said = run("--drop-suspicious", "160")
    assert code == 2
    assert "--drop-suspicious 160 leaves no failure to learn from" in said
    assert not (tmp_path / "repaired" / "fix.yaml").exists()


def test_the_same_command_resumes_and_another_is_refused(run: Run, tmp_path: Path) -> None:
    first = run()
    settings = (tmp_path / "repaired" / "fix.yaml").read_bytes()
    code, said = run()
    assert code == first[0]
    assert "the run is resumed" in said
    assert "already complete" in said
    assert (tmp_path / "repaired" / "fix.yaml").read_bytes() == settings
    code, said = run("--seed", "1")
    assert code == 2
    assert "seed: 0 -> 1" in said
    assert run("--seed", "1", "--restart")[0] in (0, 3)
    assert load_config(tmp_path / "repaired" / "fix.yaml").seed == 1


def test_the_written_settings_give_the_same_run(run: Run, tmp_path: Path) -> None:
    run()
    again = tmp_path / "again"
    assert main(["run", "--config", str(tmp_path / "repaired" / "fix.yaml"), "--storage", str(again)]) == 0
    weights = {
        str(path.relative_to(tmp_path / "repaired" / "repaired")): path.read_bytes()
        for path in (tmp_path / "repaired" / "repaired").rglob("model.safetensors")
    }
    assert len(weights) >= 3
    for name, content in weights.items():
        assert (again / "repaired" / "repaired" / name).read_bytes() == content, name


def test_a_budget_that_is_too_small_is_refused_with_the_least(run: Run, tmp_path: Path) -> None:
    code, said = run("--budget", "2s")
    assert code == 2
    assert "--budget 2s is too little" in said
    assert not (tmp_path / "repaired" / "fix.yaml").exists()


def test_what_only_failures_cannot_tell_is_unknown(run: Run, material: Path) -> None:
    code, said = run("--max-clean-drop", "0.9", images=("--failures", "colour"))
    assert code == 0, said
    assert "what it breaks among the photographs that were right is unknown" in said
    assert "right; these are not failures" in said


def test_without_clean_images_right_photographs_stand_in(run: Run, tmp_path: Path) -> None:
    code, said = run("--max-clean-drop", "0.9", clean=False, images=("--images", "readable"))
    assert code == 0, said
    assert "There are no clean images" in said
    assert "failures that judge right" in said
    config = load_config(tmp_path / "repaired" / "fix.yaml")
    assert str(config.data.root).endswith("without_clean/right.parquet")
    # All stand-ins were right before, so that each one that is wrong now is broken.
    for row in result_in(tmp_path / "repaired")["methods"]:
        assert row["clean_before"] == 1
        assert row["break_rate"] == pytest.approx(1 - row["clean"])


def test_other_photographs_stand_in_anew(run: Run, material: Path, tmp_path: Path) -> None:
    def stand_ins() -> int:
        folder = tmp_path / "repaired" / "without_clean"
        return sum(pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("right", "wrong"))

    fewer = tmp_path / "fewer"
    shutil.copytree(material / "readable", fewer)
    removed = sorted(path for path in fewer.rglob("*") if path.is_file())[::9]
    for path in removed:
        path.unlink()
    assert run("--budget", "2s", clean=False, images=("--images", "readable"))[0] == 2
    all_of_them = stand_ins()
    words = ("--budget", "2s", "--images", str(fewer))
    code, said = run(*words, clean=False, images=("--images", "readable"))
    assert "--budget 2s is too little" in said, said
    assert stand_ins() == all_of_them - len(removed)
    # What a killed command leaves is made again, too.
    (tmp_path / "repaired" / "without_clean" / "wrong.parquet").write_bytes(b"")
    (tmp_path / "repaired" / "without_clean" / "made_from.json").unlink()
    code, said = run(*words, clean=False, images=("--images", "readable"))
    assert "--budget 2s is too little" in said, said
    assert code == 2
    assert stand_ins() == all_of_them - len(removed)


@pytest.mark.parametrize("held", [False, True])
def test_without_clean_images_no_group_is_on_two_sides(run: Run, tmp_path: Path, held: bool) -> None:
    data = load_dataset("cifar10_sample", "test")
    images_NHWC, labels_N = data.images_NHWC[:400], data.labels_N[:400]
    groups_N = np.arange(400) // 10
    group_of = dict(zip(pixel_digests(images_NHWC).tolist(), groups_N.tolist(), strict=True))
    save_images((images_NHWC, labels_N), tmp_path / "days.parquet", groups=groups_N.tolist())
    save_images((data.images_NHWC[400:460], data.labels_N[400:460]), tmp_path / "later.parquet")
    words = ["--images", str(tmp_path / "days.parquet"), "--classes", ",".join(data.classes)]
    words += ["--holdout", str(tmp_path / "later.parquet")] if held else []
    code, said = run("--max-clean-drop", "0.9", *words, clean=False)
    assert code in (0, 3), said
    config = load_config(tmp_path / "repaired" / "fix.yaml")
    here = load_surroundings(config)
    wrong = here.user_images("photographs")

    def groups(digests_N: Digests) -> set[int]:
        return {group_of[digest] for digest in digests_N.tolist() if digest in group_of}

    clean = {name: groups(pixel_digests(split.images_NHWC[:])) for name, split in here.clean_splits().items()}
    of_part = {part: groups(wrong.digests_N[wrong.parts_N == part]) for part in (LEARN, SELECT, JUDGE)}
    for part, split in ((LEARN, "training"), (SELECT, "selecting"), (JUDGE, "test")):
        others = [found for other, found in (of_part | clean).items() if other not in (part, split)]
        assert not (of_part[part] | clean[split]) & set().union(*others)
        assert clean[split]
    judges_N = wrong.parts_N == JUDGE
    assert judges_N.any()
    assert bool(groups(wrong.digests_N[judges_N])) != held
    assert ("are not used: their groups judge, and so does the holdout" in said) == held
    assert ("failures that judge right" in said) != held


def test_clean_images_are_asked_for_if_nothing_can_stand_in(
    material: Path, tmp_path: Path, capsys: Any
) -> None:
    words = [
        "--failures",
        str(material / "colour"),
        "--model",
        "m:n",
        "--weights",
        str(material / "mine.pth"),
    ]
    assert main(["fix", *words, "--out", str(tmp_path / "repaired")]) == 2
    assert "--clean" in capsys.readouterr().err
    assert not (tmp_path / "repaired").exists()


def test_status_and_inspect_know_the_run(run: Run, tmp_path: Path, capsys: Any) -> None:
    run()
    for verb in ("status", "inspect"):
        assert main([verb, str(tmp_path / "repaired")]) == 0
        assert "photographs" in capsys.readouterr().out


def test_suspicious_failures_are_left_out_of_learning(run: Run, tmp_path: Path) -> None:
    code, said = run("--drop-suspicious", "3")
    assert code in (0, 3), said
    left_out = load_config(tmp_path / "repaired" / "fix.yaml").environments["photographs"].left_out
    assert len(left_out) == 3
    assert all(name in said for name in left_out)
    with_all = run("--restart")[1]
    used = [text.split("of 158 images, ")[1].split(" are learned")[0] for text in (said, with_all)]
    assert int(used[0]) <= int(used[1])
    assert said.count("clean images to learn from: ") == 1
    assert "drop_suspicious: 0 -> 3" in run("--drop-suspicious", "3")[1]


@pytest.mark.slow
def test_with_a_kit_only_the_repair_is_left(run: Run, material: Path, tmp_path: Path, capsys: Any) -> None:
    settings = KIT | {
        "model": {
            "name": "metarepair.models.resnet8:ResNet8",
            "weights": str(material / "mine.pth"),
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2470, 0.2435, 0.2616],
        }
    }
    (tmp_path / "kit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["kit", "--config", str(tmp_path / "kit.yaml"), "--out", str(tmp_path / "kit")]) == 0
    root = tmp_path / "repaired"
    words = ["--images", str(material / "colour"), "--model", "metarepair.models.resnet8:ResNet8"]
    words += ["--kit", str(tmp_path / "kit"), "--budget", "10m", "--max-clean-drop", "0.9"]
    code = main(["fix", *words, "--out", str(root)])
    said = capsys.readouterr()
    assert code in (0, 3), said.err
    assert {"joint_sgd", "metarepair"} <= {row["method"] for row in result_in(root)["methods"]}
    assert not (root / "joint").exists()
    assert not (root / "experiences").exists()
    assert code == 3 or (root / "repaired.safetensors").is_file()
