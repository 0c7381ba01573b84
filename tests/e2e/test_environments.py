"""Check the whole way with a user's own photographs as target, experience and witness."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bad_input import Cli
from benchmarks.environments import write_environment
from metarepair.config.load import load_config, parse_config
from metarepair.data.workspace import Surroundings, load_surroundings
from metarepair.runs.context import LocalContext
from metarepair.runs.layout import run_of
from metarepair.stages import images, joint
from metarepair.stages.mining import environments, mining_settings
from metarepair.stages.search_inputs import searched_config
from tasks.datasets import dataset_info, load_dataset
from tasks.environments import UserImages, corrupted_images, read_images
from tasks.experiences.store import open_side
from tasks.splits import JUDGE, LEARN, SELECT, UNUSED
from tasks.storage.manifest import read_manifest

PHOTOGRAPHS = 240
CLASSES = dataset_info("cifar10_sample").classes
SETTINGS: dict[str, Any] = {
    "name": "cam",
    "workers": 0,
    "device": "cpu",
    "targets": ["phone"],
    "environments": {"phone": {"table": "photos/compression/labels.csv"}, "old": {"images": "photos/colour"}},
    "data": {"name": "cifar10_sample", "max_train_images": 200, "max_test_images": 200},
    "mining": {
        "experiences": ["shot_noise", "old"],
        "severities": [3, 5],
        "collect": 20,
        "shard_images": 100,
    },
    "features": {"extractor": "deployed"},
    "task": {"shots": 1, "query_size": 10},
    "inner": {"steps": 1},
    "train": {"episodes": 2, "round_episodes": 1, "tasks": 1},
    "repair": {"episodes": 1, "tasks": 1, "methods": ["none", "finetune", "metarepair"]},
    "evaluate": {"others": ["fog", "old"], "others_images": 20},
}


def change(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(settings)) | changes


def write_photographs(folder: Path) -> None:
    """Write two of the recipes' environments, from test images that are not among the first 200."""
    data = load_dataset("cifar10_sample", "test")
    for recipe in ("compression", "colour"):
        write_environment(folder, data, recipe=recipe, images=PHOTOGRAPHS, seed=0)


class Camera:
    """A folder with photographs and settings, on which commands are run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        monkeypatch.chdir(folder)
        self.folder, self.cli = folder, Cli(folder, capsys)
        self.write(SETTINGS)

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "cam"

    def write(self, settings: dict[str, Any]) -> None:
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(self, verb: str, *arguments: str) -> str:
        code, out, err = self.cli.answer(verb, *arguments)
        assert code == 0, err
        return out + err


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder)
    return folder


@pytest.fixture
def camera(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Camera:
    shutil.copytree(photographs, tmp_path / "photos")
    return Camera(tmp_path, monkeypatch, capsys)


def weights(root: Path) -> dict[str, bytes]:
    found = [*root.rglob("model.safetensors"), *root.rglob("start.safetensors")]
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(found)}


def test_photographs_are_target_experience_and_witness(camera: Camera) -> None:
    said = camera.run("run")
    assert "phone: 2 images cannot be read and are left out" in said
    assert "Judged by" in said
    assert "of your images, which were set aside before anything else" in said
    assert "95% interval (Wilson)" in said
    assert "images to judge by, a difference smaller" in said
    result = json.loads((camera.root / "repaired" / "phone" / "result.json").read_text())
    assert result["judging"]["protocol"] == "own images"
    rows = {row["method"]: row for row in result["methods"]}
    images, fail = result["judging"]["images"], result["d_collect"]["fail"]
    assert rows["none"]["corrupted"] == pytest.approx(1 - fail / images)
    assert set(rows["none"]["corrupted_by_severity"]) == {"0"}
    assert set(rows["none"]["other_corruptions"]) == {"fog", "old"}
    # The sources are not needed again, and each of the other commands takes the names.
    (camera.folder / "photos").rename(camera.folder / "gone")
    for verb in ("mine", "score", "train", "repair", "report"):
        assert "already complete" in camera.run(verb) or verb in ("mine", "report")
    page = (camera.root / "report" / "index.html").read_text()
    assert "these images, or some of them, once" in page
    assert "phone" in camera.run("status", str(camera.root))
    assert "phone" in camera.run("inspect", str(camera.root))
    said = camera.run("inspect", str(camera.root / "targets" / "phone"), "--sheet", "sheet.png")
    assert "unused (not drawn into D_collect, or of an image that it has)" in said
    out = camera.run("export", str(camera.root), "--format", "original", "--out", "repaired.safetensors")
    assert "repaired.safetensors" in out


def test_a_report_without_images_holds_no_pixels_and_no_paths(camera: Camera) -> None:
    camera.run("run", "--no-images")
    out = camera.folder / "passed_on"
    camera.run("report", "--no-images", "--out", str(out))
    for folder in (camera.root / "report", out):
        page = (folder / "index.html").read_text()
        assert "No examples are shown (--no-images)" in page
        assert not list(folder.glob("*examples*"))
        for path in ("photos/", str(camera.folder), "labels.csv"):
            assert path not in page
        for file in ("table.md", "results.csv"):
            assert "photos/" not in (folder / file).read_text()
    camera.run("report")
    assert list((camera.root / "report").glob("*examples*"))
    camera.run("report", "--no-images")
    assert not list((camera.root / "report").glob("*examples*"))


def test_what_judges_is_not_learned_from(camera: Camera) -> None:
    camera.run("mine")
    folder = camera.root / "environments" / "phone"
    manifest = read_manifest(folder)
    assert manifest is not None
    classes = load_dataset("cifar10_sample", "test").classes
    source = read_images(folder, manifest, name="phone", classes=classes, seed=0)
    mined = read_manifest(camera.root / "targets" / "phone")
    assert mined is not None
    collect, fail = (
        open_side(camera.root / "targets" / "phone", side, mined) for side in ("collect", "fail")
    )
    assert set(source.parts_N[collect.image_ids_N].tolist()) <= {LEARN, SELECT}
    assert set(source.parts_N[fail.image_ids_N].tolist()) == {JUDGE}
    judges, others = source.parts_N == JUDGE, source.parts_N != JUDGE
    assert not set(source.groups_N[judges]) & set(source.groups_N[others])
    # The groups of the file stay together, too.
    names = dict(zip(source.names, source.groups_N.tolist(), strict=True))
    with (camera.folder / "photos" / "compression" / "labels.csv").open(
        newline="", encoding="utf-8"
    ) as stream:
        rows = [row for row in csv.DictReader(stream) if row["path"] in names]
    for day in {row["group"] for row in rows}:
        assert len({names[row["path"]] for row in rows if row["group"] == day}) == 1


def test_images_read_again_count_as_readings(camera: Camera) -> None:
    camera.run("run")
    camera.write(change(SETTINGS, name="again"))
    camera.run("run")
    page = (camera.folder / "runs" / "again" / "report" / "index.html").read_text()
    assert "these images, or some of them, 2 times" in page
    assert "these figures are too good" in page


def test_each_seed_of_everything_judges_by_other_photographs(camera: Camera) -> None:
    compared = {"methods": ["none", "bn_adapt"], "seeds": [0, 1], "vary": "everything"}
    mining = SETTINGS["mining"] | {"experiences": ["shot_noise"], "severities": [3]}
    camera.write(change(SETTINGS, compare=compared, mining=mining, evaluate={"others": []}))
    camera.run("compare")
    text = (camera.root / "compare" / "table.md").read_text()
    assert "Each seed was judged by " in text
    assert " of your images, which were set aside before anything else" in text
    assert "interval (Wilson, as wide as for the " in text
    assert "these figures are too good" not in text, "photographs that two seeds share are no second reading"
    judged = []
    for seed in (0, 1):
        lines = (camera.root / "seeds" / str(seed) / "d_fail_reads.jsonl").read_text().splitlines()
        judged.append(set(json.loads(lines[-1])["images"]["phone"]))
    assert judged[0] != judged[1]
    assert judged[0] & judged[1]


def test_a_change_of_the_photographs_is_noticed(camera: Camera) -> None:
    camera.run("mine")
    picture = next((camera.folder / "photos" / "colour").glob("*/*.jpg"))
    picture.rename(picture.with_name("renamed.jpg"))
    code, err = camera.cli.run("mine")
    assert code == 2
    assert "has changed since its images were read" in err
    camera.run("mine", "--restart")


def test_damaged_images_in_storage_are_read_again(camera: Camera) -> None:
    camera.run("mine")
    path = camera.root / "environments" / "phone" / "images.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + b"other")
    assert "is damaged. Regenerating it now" in camera.run("mine")
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_killed_between_the_stages_gives_the_same_weights(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera.run("run")
    expected = weights(camera.root)
    (camera.folder / "runs").rename(camera.folder / "first")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images, "write_images", killed)
        assert camera.cli.run("run")[0] == 1
    assert not list(camera.root.glob("environments/*/manifest.json"))
    for verb in ("mine", "score", "train", "repair"):
        camera.run(verb)
    assert weights(camera.root) == expected


@pytest.mark.parametrize(
    ("environments", "changes"),
    [
        ({"holdout": "photos/colour"}, {"experiences": ["shot_noise", "old"]}),
        ({}, {"experiences": ["shot_noise", "old"]}),
        ({}, {"others": ["old"]}),
    ],
)
def test_what_judges_an_environment_is_not_learned_from_in_another(
    camera: Camera, environments: dict[str, str], changes: dict[str, Any]
) -> None:
    phone = {"images": "photos/compression" if environments else "photos/colour"} | environments
    settings = change(SETTINGS, environments={"phone": phone, "old": {"images": "photos/colour"}})
    settings["mining"]["experiences"] = changes.get("experiences", ["shot_noise"])
    settings["evaluate"]["others"] = changes.get("others", [])
    camera.write(settings)
    code, err = camera.cli.run("mine")
    assert code == 2
    assert "What judges must not be learned from" in err
    assert not list(camera.root.glob("targets/*/manifest.json"))


def photographs_as_failures(camera: Camera, count: int = 100) -> dict[str, Any]:
    """Clean training images that the DNN classifies correctly."""
    data = load_dataset("cifar10_sample", "train")
    deployed = load_surroundings(parse_config(SETTINGS)).deployed
    right = deployed.logits(data.images(slice(300, 500))).argmax(1).numpy() == data.labels_N[300:500]
    for row in (300 + np.flatnonzero(right)[:count]).tolist():
        path = camera.folder / "clean" / data.classes[data.labels_N[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images_NHWC[row]).save(path)
    return {"phone": {"images": "clean"}}


def table(camera: Camera, text: str) -> dict[str, Any]:
    (camera.folder / "photos" / "compression" / "t.csv").write_text(text, encoding="utf-8")
    return {"phone": {"table": "photos/compression/t.csv"}}


def rows_of(camera: Camera) -> list[str]:
    return (camera.folder / "photos" / "compression" / "labels.csv").read_text(encoding="utf-8").splitlines()


def one_group(camera: Camera) -> dict[str, Any]:
    lines = [line.rpartition(",")[0] + ",monday" for line in rows_of(camera)[1:]]
    return table(camera, "\n".join(["path,label,group", *lines]))


def few(camera: Camera) -> dict[str, Any]:
    return table(camera, "\n".join(rows_of(camera)[:3]))


def two_failures(camera: Camera) -> dict[str, Any]:
    """Photographs of which the DNN gets two wrong: one is collected, and one judges."""
    deployed = load_surroundings(parse_config(SETTINGS)).deployed
    right, wrong = [], []
    for line in rows_of(camera)[1:]:
        path, label, _ = line.rsplit(",", 2)
        with suppress(OSError):
            pixels = np.asarray(Image.open(camera.folder / "photos" / "compression" / path).convert("RGB"))
            found = CLASSES[int(deployed.logits(pixels[None]).argmax())]
            (right if found == label else wrong).append(f"{path},{label}")
    held = camera.folder / "photos" / "compression" / "held.csv"
    held.write_text("\n".join(["path,label", *wrong[:1]]), encoding="utf-8")
    return {
        "phone": table(camera, "\n".join(["path,label", wrong[1], *right[:9]]))["phone"]
        | {"holdout": str(held)}
    }


def overlapping(camera: Camera) -> dict[str, Any]:
    return {"phone": {"images": "photos/compression", "holdout": "photos/compression"}}


def two_labels(camera: Camera) -> dict[str, Any]:
    first = rows_of(camera)[1]
    other = "cat" if ",cat," not in first else "dog"
    path = first.rsplit(",", 2)[0]
    return table(camera, "\n".join([*rows_of(camera), f"{path},{other},monday"]))


def of_the_clean_test_images(camera: Camera) -> dict[str, Any]:
    data = load_dataset("cifar10_sample", "test")
    path = camera.folder / "photos" / "compression" / data.classes[data.labels_N[7]] / "clean.png"
    Image.fromarray(data.images_NHWC[7]).save(path)
    return {"phone": {"images": "photos/compression"}}


def of_the_clean_training_images(camera: Camera) -> dict[str, Any]:
    data = load_dataset("cifar10_sample", "train")
    path = camera.folder / "photos" / "compression" / data.classes[data.labels_N[7]] / "clean.png"
    Image.fromarray(data.images_NHWC[7]).save(path)
    return {"phone": {"images": "photos/compression"}}


def mostly_broken(camera: Camera) -> dict[str, Any]:
    for path in list((camera.folder / "photos" / "compression" / "cat").iterdir()):
        path.write_bytes(b"no image")
    return {"phone": {"images": "photos/compression"}}


def holdout_without_failures(camera: Camera) -> dict[str, Any]:
    photographs_as_failures(camera, 6)
    return {"phone": {"images": "photos/compression", "holdout": "clean"}}


BAD: dict[str, tuple[Any, str]] = {
    "named like a corruption": (
        lambda _: {"fog": {"images": "photos/compression"}},
        "a corruption has this name",
    ),
    "named by a short name": (
        lambda _: {"GN": {"images": "photos/compression"}},
        "a corruption has this name",
    ),
    "named shared": (lambda _: {"shared": {"images": "photos/compression"}}, "it is reserved"),
    "named with a slash": (lambda _: {"a/b": {"images": "photos/compression"}}, "cannot name an environment"),
    "no source": (lambda _: {"phone": {}}, "give exactly one of them"),
    "two sources": (lambda _: {"phone": {"images": "a", "table": "b"}}, "images and table"),
    "an archive with a table's setting": (
        lambda _: {"phone": {"archive": "a", "corruption": "fog", "root": "b"}},
        "an archive has no such setting",
    ),
    "an archive without a corruption": (lambda _: {"phone": {"archive": "a"}}, "go together"),
    "an archive of an unknown corruption": (
        lambda _: {"phone": {"archive": "a", "corruption": "fgo"}},
        "did you mean 'fog'",
    ),
    "an archive that is none": (
        lambda _: {"phone": {"archive": "photos", "corruption": "fog"}},
        "is not a published archive",
    ),
    "an unknown key": (lambda _: {"phone": {"image": "a"}}, "image"),
    "a missing folder": (lambda _: {"phone": {"images": "nowhere"}}, "environments.phone.images"),
    "a missing holdout": (
        lambda _: {"phone": {"images": "photos/compression", "holdout": "nowhere"}},
        "environments.phone.holdout",
    ),
    "no environment of that name": (
        lambda _: {"phnoe": {"images": "photos/compression"}},
        "did you mean 'phnoe'",
    ),
    "no failures": (photographs_as_failures, "phone: the deployed DNN fails on"),
    "one group": (one_group, "form 1 group"),
    "two images": (few, "too few to judge"),
    "two failures": (two_failures, "a repair needs at least one of each"),
    "holdout overlaps": (overlapping, "the holdout shares images"),
    "two labels": (two_labels, "has two labels"),
    "clean test images": (of_the_clean_test_images, "also among the clean test images"),
    "clean training images": (of_the_clean_training_images, "also among the clean training images"),
    "too many unreadable": (mostly_broken, "cannot be read, more than 5%"),
    "a label of no class": (lambda c: table(c, "path,label\na.jpg,bear\n"), "names no class"),
    "a float label": (lambda c: table(c, "path,label\na.jpg,1.5\n"), "names no class"),
    "a label of 2^63": (lambda c: table(c, f"path,label\na.jpg,{2**63}\n"), "names no class"),
    "a path outside": (lambda c: table(c, "path,label\n../colour/a.jpg,cat\n"), "leads out of"),
    "only missing files": (lambda c: table(c, "path,label\na.jpg,cat\nb.jpg,dog\n"), "no such file"),
    "right answers alone in the holdout": (holdout_without_failures, "0 of those that judge"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_environment_that_cannot_be_used_is_refused(camera: Camera, name: str) -> None:
    make, says = BAD[name]
    settings = change(SETTINGS, environments=make(camera))
    settings["mining"] |= {"experiences": ["shot_noise"]}
    settings["evaluate"]["others"] = []
    camera.write(settings)
    code, err = camera.cli.run("mine")
    lines = [line for line in err.splitlines() if line.startswith("metarepair: ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert says in lines[0]
    assert "Traceback" not in err
    assert not list(camera.root.glob("targets/*/manifest.json"))


def test_near_duplicates_of_clean_test_images_are_not_used(camera: Camera) -> None:
    data = load_dataset("cifar10_sample", "test")
    for row in range(20):
        path = camera.folder / "photos" / "colour" / data.classes[data.labels_N[row]] / f"near{row}.jpg"
        Image.fromarray(data.images_NHWC[row]).save(path, quality=97, subsampling=0)
    said = camera.run("mine")
    assert "old: " in said
    assert "images are near-duplicates of clean test images, which judge; they are not used" in said
    folder = camera.root / "environments" / "old"
    manifest = read_manifest(folder)
    assert manifest is not None
    source = read_images(folder, manifest, name="old", classes=data.classes, seed=0)
    near_N = np.array(["near" in Path(name).name for name in source.names])
    assert (source.parts_N[near_N] == UNUSED).sum() >= 15


def test_what_judges_is_no_near_duplicate_of_clean_images_that_are_learned_from(camera: Camera) -> None:
    data = load_dataset("cifar10_sample", "train")
    for row in range(60):
        path = camera.folder / "photos" / "compression" / data.classes[data.labels_N[row]] / f"near{row}.jpg"
        Image.fromarray(data.images_NHWC[row]).save(path, quality=90, subsampling=0)
    settings = change(SETTINGS)
    settings["environments"]["phone"] = {"images": "photos/compression"}
    camera.write(settings)
    said = camera.run("mine")
    assert "images are near-duplicates of clean images that are learned from; they are not used" in said
    source = surroundings(camera, settings).user_images("phone")
    near_N = np.array(["near" in Path(name).name for name in source.names])
    assert (source.parts_N[near_N] == UNUSED).mean() > 0.8
    assert (source.parts_N[~near_N] == JUDGE).any()


def test_a_search_on_experiences_keeps_targets_apart_and_leaves_the_run(camera: Camera) -> None:
    camera.run("mine")
    settings = change(SETTINGS)
    settings["search"] = {
        "objective": "pseudo_targets",
        "trials": 1,
        "space": {"inner.rate": {"choice": [0.01, 0.03]}},
    }
    settings["mining"]["experiences"] = ["shot_noise", "old", "fog"]
    camera.write(settings)
    config = load_config(camera.folder / "tiny.yaml")
    searched = searched_config(config)
    assert searched.targets == ()
    assert searched.evaluate.others == ("fog", "old", "phone")
    whole, search = load_surroundings(config), load_surroundings(searched)
    assert search.inputs_of("old") == whole.inputs_of("old")
    assert mining_settings(searched, environments(run_of(searched), searched)[1]).values


def test_near_duplicates_of_what_judges_another_environment_are_not_used(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = change(SETTINGS, name="alone")
    alone["mining"]["experiences"], alone["evaluate"]["others"] = ["shot_noise"], []
    camera.write(alone)
    camera.run("mine")
    phone = surroundings(camera, alone).user_images("phone")
    judges = np.flatnonzero(phone.parts_N == JUDGE)[:20]
    for row in judges:
        path = camera.folder / "photos" / "colour" / phone.classes[phone.labels_N[row]] / f"again{row}.jpg"
        Image.fromarray(phone.images_NHWC[row]).save(path, quality=97, subsampling=0)
    camera.write(SETTINGS)
    said = camera.run("mine")
    assert "images are near-duplicates of images that judge another environment; they are not used" in said
    here = surroundings(camera, SETTINGS)
    old = here.environment("train", "old")
    assert isinstance(old, UserImages)
    again_N = np.array(["again" in name for name in old.names])
    assert again_N.sum() == len(judges)
    assert not old.learned_N[again_N].any()
    assert old.learned_N.any()
    mined = read_manifest(camera.root / "experiences" / "old")
    assert mined is not None
    for side in ("collect", "fail"):
        ids = open_side(camera.root / "experiences" / "old", side, mined).image_ids_N
        assert old.learned_N[ids].all()
    given: dict[str, Any] = {}
    monkeypatch.setattr(joint, "train_jointly", lambda *arguments, **_: given.update(arguments[2]))
    config = load_config(camera.folder / "tiny.yaml")
    joint.train_jointly_here(
        run_of(config), config, LocalContext(folder=camera.root, device=torch.device("cpu"))
    )
    np.testing.assert_array_equal(given["old"].rows_N, np.flatnonzero(old.learned_N))
    # Which images are left out is among what mining depends on.
    assert set(here.inputs_of("old")) == {"environment old", "left out of old"}
    assert set(surroundings(camera, alone).inputs_of("phone")) == {"environment phone"}


def surroundings(camera: Camera, settings: dict[str, Any]) -> Surroundings:
    camera.write(settings)
    return load_surroundings(load_config(camera.folder / "tiny.yaml"))


def test_a_holdout_that_lacks_classes_is_noted(camera: Camera) -> None:
    phone = camera.folder / "photos" / "compression"
    (camera.folder / "later").mkdir()
    (phone / "cat").rename(camera.folder / "later" / "cat")
    settings = change(SETTINGS, environments={"phone": {"images": str(phone), "holdout": "later"}})
    settings["mining"]["experiences"], settings["evaluate"]["others"] = ["shot_noise"], []
    camera.write(settings)
    said = camera.run("mine")
    assert "phone: none of the images that judge is of airplane, automobile, bird, deer" in said


def test_an_environment_without_a_role_is_noted(camera: Camera) -> None:
    settings = change(SETTINGS)
    settings["environments"]["spare"] = {"images": "nowhere"}
    camera.write(settings)
    assert "nor in evaluate.others, and are not read: spare" in camera.run("mine")


def test_clean_images_without_splits_serve_a_whole_run(camera: Camera) -> None:
    data = load_dataset("cifar10_sample", "train")
    for row in range(400):
        path = camera.folder / "clean" / data.classes[data.labels_N[row]] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images_NHWC[row]).save(path)
    camera.write(change(SETTINGS, data={"name": "images", "root": "clean"}))
    said = camera.run("run")
    assert "phone: of 238 images, " in said
    assert "clean images to judge by: 100" in said
    result = json.loads((camera.root / "repaired" / "phone" / "result.json").read_text())
    assert result["judging"]["clean_images"] == 100  # the whole quarter, since nothing learns from any of it
    assert "already complete" in camera.run("train")


def test_a_comparison_judges_again_once_another_environment_was_read_again(camera: Camera) -> None:
    settings = change(SETTINGS)
    settings["compare"] = {"methods": ["none", "bn_adapt"], "seeds": [0]}
    settings["mining"]["experiences"] = ["shot_noise"]
    camera.write(settings)
    camera.run("compare")
    row = camera.root / "compare" / "phone" / "none" / "0" / "judged.json"
    before = json.loads(row.read_text())["other_corruptions"]["old"]
    shutil.rmtree(camera.root / "environments" / "old")
    for path in sorted((camera.folder / "photos" / "colour").glob("*/*"))[::2]:
        path.unlink()
    camera.run("compare")
    assert json.loads(row.read_text())["other_corruptions"]["old"] != before


def test_a_comparison_judges_again_once_an_archive_changed(camera: Camera) -> None:
    test = load_dataset("cifar10_sample", "test")
    count = int(test.image_ids_N.max()) + 1
    folder = camera.folder / "published"
    folder.mkdir()
    labels = np.zeros(count, np.int64)
    labels[test.image_ids_N] = test.labels_N
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[test.image_ids_N] = test.images_NHWC
    np.save(folder / "labels.npy", np.tile(labels, 5))
    settings = change(SETTINGS, targets=["snow"])
    settings["environments"] = {"pub": {"archive": "published", "corruption": "fog"}}
    settings["mining"]["experiences"], settings["evaluate"]["others"] = ["shot_noise"], ["pub"]
    settings["compare"] = {"methods": ["none", "bn_adapt"], "seeds": [0]}
    camera.write(settings)
    found = []
    for shown, other in (
        (images, "snow"),
        (255 - images, "frost"),
    ):  # an archive is known by its files and labels
        np.save(folder / "fog.npy", np.tile(shown, (5, 1, 1, 1)))
        np.save(folder / f"{other}.npy", np.tile(shown, (5, 1, 1, 1)))
        camera.run("compare")
        row = json.loads((camera.root / "compare" / "snow" / "none" / "0" / "judged.json").read_text())
        found.append(row["other_corruptions"]["pub"])
    assert found[0] > found[1]
    page = (camera.root / "compare" / "index.html").read_text()
    assert "repairs were judged by these images, or some of them, 2 times" in page


def test_an_archive_may_have_a_name_of_its_own(camera: Camera) -> None:
    test = load_dataset("cifar10_sample", "test")
    rows = np.arange(len(test.labels_N))
    count = int(test.image_ids_N.max()) + 1
    folder = camera.folder / "published"
    folder.mkdir()
    labels = np.zeros(count, np.int64)
    labels[test.image_ids_N] = test.labels_N
    np.save(folder / "labels.npy", np.tile(labels, 5))
    images = np.zeros((5, count, 32, 32, 3), np.uint8)
    for severity in (3, 5):
        images[severity - 1, test.image_ids_N] = corrupted_images(
            test, rows, corruption="fog", severity=severity, seed=9
        )
    np.save(folder / "fog.npy", images.reshape(-1, 32, 32, 3))
    settings = change(
        SETTINGS,
        targets=["published_fog"],
        environments={"published_fog": {"archive": str(folder), "corruption": "fog"}},
    )
    settings["mining"] |= {"experiences": ["shot_noise", "published_fog"]}
    settings["evaluate"]["others"] = ["fog", "published_fog"]
    settings["repair"]["methods"] = ["none", "finetune"]
    camera.write(settings)
    camera.run("mine")
    camera.run("repair")
    for role in ("experiences", "targets"):
        manifest = read_manifest(camera.root / role / "published_fog")
        assert manifest is not None
        assert "environment published_fog" in manifest.inputs
        assert manifest.config["environment"] == {"corruption": "fog"}
    result = json.loads((camera.root / "repaired" / "published_fog" / "result.json").read_text())
    assert result["judging"]["images"] == 100
    # As an experience it is learned from, so it may hold only images that do not judge.
    experience = read_manifest(camera.root / "experiences" / "published_fog")
    assert experience is not None
    assert experience.facts["examined"] == {"3": 100, "5": 100}
