"""Check `diagnose` on a user's photographs: what it says, and that it looks at nothing that judges."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tasks
from bad_input import files_under
from benchmarks.environments import write_environment
from metarepair.cli import main
from metarepair.config.run import Config
from metarepair.data.workspace import Surroundings
from metarepair.diagnosis import known
from metarepair.fixing.plan import Speeds
from metarepair.kit.kit import open_kit
from metarepair.models.build import load_deployed
from metarepair.runs.layout import Run
from metarepair.stages import diagnose
from metarepair.stages.images import read_user_images
from metarepair.weights import kit_folder
from tasks.corruptions import CORRUPTIONS
from tasks.datasets import ArrayDataset, dataset_info, load_dataset
from tasks.environments import UserImages, read_images
from tasks.splits import JUDGE
from tasks.storage.manifest import read_manifest

PHOTOGRAPHS, CLEAN = 240, 320
COLOUR = ("--mean", "0.4914", "0.4822", "0.4465", "--std", "0.2470", "0.2435", "0.2616")
MODEL = ("--model", "resnet8_cifar", "--weights", "shipped:resnet8_cifar10", *COLOUR)
SPEEDS = Speeds(
    step_s=0.05,
    image_s=0.001,
    learned_image_s=0.003,
    mined_image_s=0.002,
    task_s=0.2,
    support_images=100,
)
FILES = ("diagnosis.json", "index.html", "suspicious_labels.csv", "suspicious_labels.png", "nearest.png")


def write_clean(folder: Path, data: ArrayDataset) -> None:
    for image, label, number in zip(data.images_NHWC[:CLEAN], data.labels_N, data.image_ids_N, strict=False):
        (folder / data.classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / data.classes[label] / f"{number:05d}.png")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a table of their labels, and clean images."""
    folder = tmp_path_factory.mktemp("photographs")
    test = load_dataset("cifar10_sample", "test")
    write_environment(folder, test, recipe="compression", images=PHOTOGRAPHS, seed=0)
    write_clean(folder / "clean", load_dataset("cifar10_sample", "train"))
    return folder


@dataclass
class User:
    """Runs `diagnose` on the photographs, from a folder of its own."""

    photographs: Path
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def answer(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, standard output and standard error."""
        self.capsys.readouterr()
        try:
            code = main(["diagnose", *MODEL, *arguments])
        except SystemExit as ended:  # of argparse
            code = int(ended.code or 0)
        found = self.capsys.readouterr()
        return code, found.out, found.err

    def diagnose(self, *arguments: str, images: str = "--images") -> str:
        code, out, err = self.answer(images, str(self.table), "--clean", str(self.clean), *arguments)
        assert code == 0, err
        return out

    @property
    def table(self) -> Path:
        return self.photographs / "compression" / "labels.csv"

    @property
    def clean(self) -> Path:
        return self.photographs / "clean"

    def files(self, out: str) -> dict[str, bytes]:
        """What a diagnosis wrote, without its duration and the copies of the photographs."""
        found = files_under(self.folder / out)
        record = json.loads(found["diagnosis.json"])
        del record["seconds"]
        page = re.sub(rb"took \d+ s", b"", found["index.html"])
        pictures = {name: content for name, content in found.items() if name.endswith((".png", ".csv"))}
        return pictures | {"diagnosis.json": json.dumps(record).encode(), "index.html": page}

    def record(self, out: str = "diagnosis") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / out / "diagnosis.json").read_text())
        return found


@pytest.fixture
def user(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> User:
    """In a folder of their own, on a machine of known speed, with few corrupted images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known, "MOST_IMAGES", 60)
    monkeypatch.setattr(known, "FAILURES", 30)
    monkeypatch.setattr(diagnose, "measure", lambda *_: (SPEEDS, 1))
    return User(photographs, tmp_path, capsys)


def seen_by_hand(folder: Path) -> UserImages:
    """The photographs that a diagnosis decoded into its folder."""
    path = folder / "environments" / "photographs"
    manifest = read_manifest(path)
    assert manifest is not None
    return read_images(
        path, manifest, name="photographs", classes=dataset_info("cifar10_sample").classes, seed=0
    )


def test_a_diagnosis_says_what_is_true_of_the_photographs(user: User) -> None:
    said = user.diagnose()
    for words in (
        "The DNN is right on",
        "Worst classes:",
        "Adapting batch norm alone:",
        "Nearest known environments:",
        "Suspicious labels: of",
        "Not looked at:",
        "Repair with `metarepair fix` within 10 min 0 s: fine-tuning for 20 epochs, joint training for",
        "/diagnosis/index.html",
    ):
        assert words in said
    record, source = user.record(), seen_by_hand(user.folder / "diagnosis")
    rows = np.flatnonzero(source.learned_N)
    deployed = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", dataset_info("cifar10_sample"))
    predicted = deployed.logits(source.images_NHWC[rows]).argmax(1).numpy()
    labels = source.labels_N[rows]
    whole = record["photographs"]["whole"]
    assert (whole["right"], whole["images"]) == (int((predicted == labels).sum()), len(rows))
    assert whole["low"] < whole["share"] < whole["high"]
    assert record["failures"] == len(record["labels"]) == int((predicted != labels).sum())
    confusion = np.array(record["photographs"]["confusion"])
    assert confusion.sum() == len(rows)
    assert confusion[3, 5] == ((labels == 3) & (predicted == 5)).sum()
    assert {one["name"] for one in record["nearest"]["found"]} | set(record["nearest"]["too_few"]) == set(
        CORRUPTIONS
    )
    distances = [one["distance"] for one in record["nearest"]["found"]]
    assert distances == sorted(distances)
    assert len({one["failures"] for one in record["nearest"]["found"]}) == 1, "distances are of equally many"
    norms = record["norms"]
    gain = norms["after"]["right"] - norms["before"]["right"]
    assert gain == norms["fixed"] - norms["broken"]
    assert norms["clean_before"] == record["clean"]["whole"]
    page = (user.folder / "diagnosis" / "index.html").read_text()
    assert page.count("<img ") == 4
    assert record["labels"][0]["file"] in page.replace("&amp;", "&").replace("&#x27;", "'").replace(
        "&quot;", '"'
    )
    assert all((user.folder / "diagnosis" / name).is_file() for name in FILES)
    # A second call finds the decoded photographs, and says the same.
    before = user.files("diagnosis")
    assert "already complete" in user.diagnose()
    assert user.files("diagnosis") == before


def test_nothing_that_judges_is_looked_at(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the photographs are set aside, those that judge may be noise, and so may the clean test images."""
    user.diagnose("--out", "whole")
    read = read_user_images

    def spoil(run: Run, config: Config, here: Surroundings) -> None:
        read(run, config, here)
        source = here.user_images("photographs")
        judges = np.flatnonzero(source.parts_N == JUDGE)
        assert len(judges) == user.record("whole")["images"]["judge"] > 30
        path = run.environment("photographs") / "images.bin"
        pixels = np.memmap(str(path), np.uint8, mode="r+", shape=source.images_NHWC.shape)
        pixels[judges] = np.random.default_rng(0).integers(256, size=pixels[judges].shape)
        pixels.flush()
        assert (source.images_NHWC[judges] == pixels[judges]).all()
        test = here.split("test")
        noise = np.random.default_rng(0).integers(256, size=test.images_NHWC.shape, dtype=np.uint8)
        here._splits["test"] = replace(test, images_NHWC=noise)

    monkeypatch.setattr("metarepair.stages.diagnose.read_user_images", spoil)
    user.diagnose("--out", "spoilt")
    whole, spoilt = user.files("whole"), user.files("spoilt")
    assert whole.keys() == spoilt.keys()
    assert [name for name in whole if whole[name] != spoilt[name]] == []


def test_of_failures_alone_accuracy_is_not_known(user: User) -> None:
    said = user.diagnose("--no-images", images="--failures")
    assert "so accuracy on the photographs is not known" in said
    assert "The DNN gets " in said, "some of the given photographs are no failures"
    assert "Worst classes" not in said
    record = user.record()
    assert record["only_failures"] is True
    assert record["photographs"]["whole"] is None
    assert record["photographs"]["calibration"] is None
    assert record["labels"]


def test_without_images_no_photograph_and_no_name_is_shown(user: User) -> None:
    user.diagnose("--no-images")
    folder = user.folder / "diagnosis"
    assert not (folder / "suspicious_labels.png").exists()
    assert {one["file"] for one in user.record()["labels"]} == {None}
    names = seen_by_hand(folder).names
    for file in ("index.html", "diagnosis.json", "suspicious_labels.csv"):
        text = (folder / file).read_text()
        assert not [name for name in names if name in text]
        assert str(user.photographs) not in text


def test_with_the_shipped_kit_photographs_are_all_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnose, "measure", lambda *_: (SPEEDS, 1))
    sample = Path(tasks.__file__).parent / "sample" / "photographs.parquet"
    out = tmp_path / "diagnosis"
    words = ["--kit", "shipped:resnet8_cifar10", "--images", str(sample), "--out", str(out)]
    assert main(["diagnose", *words]) == 0
    said = capsys.readouterr().out
    assert "Not looked at: 160 photographs" in said
    record = json.loads((out / "diagnosis.json").read_text())
    kit = open_kit(kit_folder("shipped:resnet8_cifar10"))
    assert {one["name"] for one in record["nearest"]["found"]} == set(kit.file.names)
    assert record["norms"]["after"]["right"] > record["norms"]["before"]["right"]
    whole = record["photographs"]["whole"]
    assert whole["images"] == 640
    assert whole["share"] == pytest.approx(0.756, abs=0.005)
    assert record["failures"] == len(record["labels"]) == 640 - whole["right"]
    assert all((out / name).is_file() for name in FILES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--images", "photos"), "give --clean, or a --kit"),
        (("--clean", "clean"), "--images"),
        (("--images", "photos", "--clean", "clean", "--address", "auto"), "leave out --address"),
        (("--images", "photos", "--clean", "nowhere"), "nowhere"),
    ],
)
def test_what_is_missing_is_told_in_one_line(user: User, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = user.answer(*arguments)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert list(user.folder.iterdir()) == []
