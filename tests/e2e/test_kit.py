"""Check repair kits from end to end: making one, repairing with it, and everything that it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from kits import KIT, with_kit
from metarepair import RepairConfig, save_images
from metarepair.cli import main
from metarepair.config.kit import MAKE_AGAIN, KitFile
from metarepair.config.load import parse_config
from metarepair.data.workspace import load_surroundings
from metarepair.features.files import read_moments
from metarepair.inspection.inspect import inspect
from metarepair.inspection.status import status_of
from metarepair.kit.kit import open_kit
from metarepair.repairs.api import repair
from metarepair.runs.context import LocalContext
from metarepair.stages import kit as making
from metarepair.stages.pipeline import Pipeline
from metarepair.stages.train import build_trainer, inputs_of
from tasks.datasets import load_dataset
from tasks.distances.frechet import frechet_distance
from tasks.environments import corrupted_images
from tasks.errors import ConfigError, DataError, StageError, UserError, WeightsError
from tasks.splits.digests import pixel_digests
from tasks.storage.manifest import require_manifest
from tasks.storage.paths import copy_file, place, read_table

SHIPPED = Path(making.__file__).parents[1] / "weights" / "resnet8_cifar10.safetensors"


def make(folder: Path, *options: str, **changes: Any) -> int:
    """Make a kit in `folder`; `changes` replace whole groups of settings."""
    settings = folder.with_suffix(".yaml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(yaml.safe_dump(KIT | changes), encoding="utf-8")
    return main(["kit", "--config", str(settings), "--out", str(folder), *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit with its failures; tests must not write to it."""
    folder = tmp_path_factory.mktemp("kits") / "whole"
    assert make(folder) == 0
    return folder


@pytest.fixture
def kit(whole: Path, tmp_path: Path) -> Path:
    """A copy of the kit that a test may change."""
    return Path(shutil.copytree(whole, tmp_path / "kit"))


def refused(kit: Path, storage: Path, **changes: Any) -> str:
    """The message with which a run with the kit is refused before it has mined anything."""
    with pytest.raises(UserError) as error:
        Pipeline(parse_config(with_kit(kit, storage, **changes))).whole()
    assert not [*storage.glob("*/targets/*/manifest.json")]
    return f"{type(error.value).__name__}: {error.value}"


def test_a_kit_is_a_run_without_targets(whole: Path) -> None:
    found = {stage.name: stage.state for stage in status_of(str(whole)).stages}
    assert found == dict.fromkeys(("mine", "features", "score", "joint", "train", "kit"), "done")
    assert not (whole / "targets").exists()
    assert not inspect(str(whole)).damaged
    file = open_kit(whole).file
    assert file.names == ("shot_noise", "snow")
    assert file.model.name == "resnet8_cifar"
    assert file.failures
    assert file.clean == (270, 200)
    start = load_file(whole / "joint/model.safetensors")
    learned = load_file(whole / "meta/shared/start.safetensors")
    assert not all(value.equal(learned[name]) for name, value in start.items())


def test_it_knows_every_image_that_it_learned_from_or_selected_by_and_no_other(whole: Path) -> None:
    kit = open_kit(whole)
    train, test = (load_dataset("cifar10_sample", split) for split in ("train", "test"))
    # A tenth of the 300 is held out from learning, but selects, so it must not judge either.
    np.testing.assert_array_equal(kit.digests(), np.unique(pixel_digests(train.images_NHWC[:300])))
    assert not len(kit.learned(pixel_digests(test.images_NHWC)))
    rows = {half: load_parquet(whole / f"pack/clean/{half}.parquet") for half in ("train", "test")}
    assert len(kit.learned(rows["train"])) == len(rows["train"])
    assert not len(kit.learned(rows["test"]))


def test_clean_images_without_splits_are_known_unless_they_judge(tmp_path: Path) -> None:
    train = load_dataset("cifar10_sample", "train").head(200)
    images = save_images((train.images_NHWC, train.labels_N), tmp_path / "clean.parquet")
    data = {"name": "images", "root": str(images), "classes": list(train.classes)}
    config = parse_config(KIT | {"name": "unsplit", "targets": ["fog"], "data": data})
    here = load_surroundings(config)
    known = making.learned_digests(here, config)
    held = pixel_digests(here.split("select").images_NHWC)
    assert np.isin(held, known).all()
    assert np.isin(pixel_digests(here.split("train").images_NHWC), known).all()
    assert not np.isin(pixel_digests(here.split("test").images_NHWC), known).any()


def load_parquet(path: Path) -> Any:
    """The pixel digests of the images in a Parquet file."""
    from metarepair.config.data import DataConfig

    classes = tuple(map(str, range(10)))
    source = DataConfig(name="parquet", train=str(path), test=str(path), classes=classes).source()
    return pixel_digests(load_dataset(source, "train").images_NHWC)


@pytest.mark.slow
def test_a_run_with_it_mines_the_target_alone_and_starts_from_the_kits_weights(
    whole: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(parse_config(with_kit(whole, tmp_path)))
    pipeline.whole()
    root = tmp_path / "withkit"
    assert not {"experiences", "joint", "meta"} & {path.name for path in root.iterdir()}
    inputs = require_manifest(root / "repaired/gaussian_noise", "").inputs
    assert inputs["joint"] == require_manifest(whole / "joint", "").digest
    assert inputs["meta"] == require_manifest(whole / "meta/shared", "").digest
    scored = require_manifest(root / "score", "")
    assert scored.inputs["kit"] == open_kit(whole).manifest.digest
    joint = load_file(root / "repaired/gaussian_noise/joint/0/model.safetensors")
    assert all(
        value.equal(joint[name]) for name, value in load_file(whole / "joint/model.safetensors").items()
    )
    result = json.loads((root / "repaired/gaussian_noise/result.json").read_text())
    assert {one["name"] for one in result["experiences"]} == {"shot_noise", "snow"}
    assert (root / "report/index.html").is_file()
    assert status_of(str(root)).state == "finished"
    before = (root / "score/manifest.json").read_bytes()
    Pipeline(parse_config(with_kit(whole, tmp_path))).whole()
    assert (root / "score/manifest.json").read_bytes() == before


def test_a_targets_distances_are_those_to_the_moments_of_the_kits_experiences(
    whole: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline(parse_config(with_kit(whole, tmp_path)))
    pipeline.mine()
    pipeline.score()
    target = read_moments(pipeline.run.features / "target-gaussian_noise/moments.npy")
    expected = {
        name: frechet_distance(read_moments(whole / f"features/experience-{name}/moments.npy"), target)
        for name in ("shot_noise", "snow")
    }
    found = {row["experience"]: row["distance"] for row in read_rows(pipeline.run.score / "fid.parquet")}
    assert found == pytest.approx(expected, rel=1e-4)  # the kit has float32
    matrix = {row["environment"]: row for row in read_rows(pipeline.run.score / "matrix.parquet")}
    assert matrix["snow"]["shot_noise"] == open_kit(whole).distances()[0, 1] > 0


def read_rows(path: Any) -> Any:
    """The rows of a table."""
    return read_table(path, "").to_pylist()


def test_a_target_that_it_learned_from_is_refused(whole: Path, tmp_path: Path) -> None:
    assert "snow is a target, and the kit" in refused(whole, tmp_path, targets=["snow"])


def test_another_dnn_is_refused(whole: Path, tmp_path: Path) -> None:
    state = load_file(SHIPPED)
    state["fc.bias"] = state["fc.bias"] + 1
    save_file(state, tmp_path / "other.safetensors")
    said = refused(whole, tmp_path / "runs", model={"weights": str(tmp_path / "other.safetensors")})
    assert said.startswith("WeightsError: resnet8_cifar has other weights than the DNN that the kit")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}, "model.mean="),
        ({"model": {"input_size": 64}}, "model.input_size=64"),
        ({"features": {"extractor": "inception"}}, "features.extractor=inception"),
        ({"refine": 2, "train": {"query": {"failures": 1, "right": 1}}}, "refine learns from the failures"),
        ({"repair": {"methods": ["merged", "none"]}}, "merged averages repairs"),
        ({"mining": {"experiences": ["fog"]}}, "mining.experiences and kit are both given"),
        ({"features": {"bootstrap": 100}}, "features.bootstrap"),
    ],
)
def test_settings_that_do_not_fit_it_are_refused(
    whole: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(whole, tmp_path, **changes)


def test_another_order_of_classes_is_refused(whole: Path, tmp_path: Path) -> None:
    data = parse_config(with_kit(whole, tmp_path)).data.model_dump(mode="json")
    data["classes"] = [*data["classes"][1:], data["classes"][0]]
    said = refused(whole, tmp_path / "runs", data=data)
    assert "class 0 is 'automobile' here and 'airplane' there" in said
    assert "in the order of the kit (data.classes, --classes)" in said


@pytest.mark.parametrize("count", [2, 10])
def test_clean_images_of_other_classes_name_the_kit_and_its_classes(
    whole: Path, tmp_path: Path, count: int
) -> None:
    images = np.random.default_rng(0).integers(256, size=(80, 32, 32, 3), dtype=np.uint8)
    for number in range(80):
        path = tmp_path / "clean" / f"class{number % count}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    said = refused(whole, tmp_path / "runs", data={"name": "images", "root": str(tmp_path / "clean")})
    assert "airplane, automobile, bird" in said
    assert "--classes" in said
    assert "metarepair kit" in said
    assert "Reorder" not in said
    assert "data.name" not in said


def test_judging_images_that_it_learned_from_are_refused(whole: Path, tmp_path: Path) -> None:
    train, test = (load_dataset("cifar10_sample", split) for split in ("train", "test"))
    photographs = corrupted_images(test, np.arange(200, 280), corruption="gaussian_noise", severity=5, seed=0)
    images = save_images((photographs, test.labels_N[200:280]), tmp_path / "photographs.parquet")
    learned = np.flatnonzero(np.isin(pixel_digests(train.images_NHWC), open_kit(whole).digests()))[:10]
    holdout = save_images((train.images_NHWC[learned], train.labels_N[learned]), tmp_path / "holdout.parquet")
    environments = {"night": {"images": str(images), "holdout": str(holdout)}}
    said = refused(whole, tmp_path / "runs", targets=["night"], environments=environments)
    assert "learned from" in said
    data = parse_config(with_kit(whole, tmp_path)).data.model_dump(mode="json")
    swapped = data | {"train": data["test"], "test": data["train"]}
    assert "clean images that judge" in refused(whole, tmp_path / "other", data=swapped)


def test_a_damaged_a_mixed_and_a_newer_kit_are_refused(kit: Path, tmp_path: Path) -> None:
    config = parse_config(with_kit(kit, tmp_path / "runs"))
    moments = kit / "pack/moments/snow.npy"
    held = moments.read_bytes()
    moments.write_bytes(held[:-1] + b"x")
    with pytest.raises(DataError, match=rf"moments/snow.* is missing or damaged .*\. {MAKE_AGAIN}$"):
        Pipeline(config)
    moments.write_bytes(held)
    for name in ("meta/shared/start.safetensors", "pack/manifest.json", "joint/manifest.json"):
        whole_bytes = (kit / name).read_bytes()
        (kit / name).write_bytes(whole_bytes[:-9])
        with pytest.raises(DataError, match=rf"{name} is .*damaged.*\. {MAKE_AGAIN}$"):
            Pipeline(config)
        (kit / name).write_bytes(whole_bytes)
    (kit / "joint/manifest.json").rename(kit / "joint/aside.json")
    with pytest.raises(StageError, match="is not finished"):
        Pipeline(config)
    shutil.copy(kit / "meta/shared/manifest.json", kit / "joint/manifest.json")
    with pytest.raises(DataError, match="is not of the kit"):
        Pipeline(config)
    file = kit / "pack/kit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 2}))
    with pytest.raises(ConfigError, match="has version 2, and this program reads kits up to version 1"):
        parse_config(with_kit(kit, tmp_path / "runs"))
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"kit\.json is damaged"):
        parse_config(with_kit(kit, tmp_path / "runs"))
    file.unlink()
    with pytest.raises(StageError, match="is not a finished repair kit"):
        parse_config(with_kit(kit, tmp_path / "runs"))


def test_a_kit_imports_no_module_that_the_user_has_not_named(kit: Path, tmp_path: Path) -> None:
    file = kit / "pack/kit.json"
    content = json.loads(file.read_text())
    content["model"]["name"] = "antigravity:anything"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"so name it yourself if you trust it: model\.name='antigravity"):
        parse_config(with_kit(kit, tmp_path))
    named = parse_config(with_kit(kit, tmp_path, model={"name": "examples.cifar_resnets:resnet20"}))
    assert named.model.name == "examples.cifar_resnets:resnet20"


@pytest.mark.slow
def test_it_refines_for_the_target_from_its_own_theta_meta(whole: Path, tmp_path: Path) -> None:
    config = parse_config(with_kit(whole, tmp_path, refine=2))
    assert (config.train.episodes, config.train.query.clean) == (2, 0.5)
    pipeline = Pipeline(config)
    pipeline.whole()
    trained = require_manifest(tmp_path / "withkit/meta/gaussian_noise", "")
    assert trained.facts["episodes"] == 2
    assert trained.inputs["kit"] == open_kit(whole).manifest.digest
    repaired = require_manifest(tmp_path / "withkit/repaired/gaussian_noise", "")
    assert repaired.inputs["meta"] == trained.digest
    context = LocalContext(folder=tmp_path / "none", device=torch.device("cpu"))
    trainer = build_trainer(inputs_of(pipeline.run, config, "gaussian_noise"), config, context)
    trainer.close()
    shared = load_file(whole / "meta/shared/start.safetensors")
    assert all(value.equal(shared[name]) for name, value in trainer.parameters.items())
    refined = load_file(tmp_path / "withkit/meta/gaussian_noise/start.safetensors")
    assert not all(value.equal(refined[name]) for name, value in shared.items())


@pytest.mark.slow
def test_without_failures_it_is_small_repairs_and_cannot_be_refined(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    assert make(folder, "--no-failures") == 0
    assert {path.name for path in folder.iterdir()} == {"joint", "meta", "pack"}
    assert not [*folder.rglob("*.arrow")]
    sizes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert sizes < 6e6
    found = {stage.name: stage.state for stage in status_of(str(folder)).stages}
    assert found == {"joint": "done", "train": "done", "kit": "done"}
    assert "holds none (it was made with --no-failures" in refused(folder, tmp_path / "runs", refine=1)
    before = (folder / "pack/manifest.json").read_bytes()
    assert make(folder, "--no-failures") == 0  # complete: nothing is made again
    assert (folder / "pack/manifest.json").read_bytes() == before
    moved = folder.rename(tmp_path / "moved")
    Pipeline(parse_config(with_kit(moved, tmp_path / "runs"))).whole()
    assert (tmp_path / "runs/withkit/report/index.html").is_file()


@pytest.mark.slow
def test_without_images_it_holds_none_and_asks_for_clean_ones(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    assert make(folder, "--no-images") == 0
    assert not [*folder.rglob("*.parquet"), *folder.rglob("*.arrow"), *folder.rglob("*.bin")]
    assert KitFile.read(folder).clean is None
    with pytest.raises(ConfigError, match="holds no clean images"):
        parse_config(with_kit(folder, tmp_path / "runs"))
    Pipeline(parse_config(with_kit(folder, tmp_path / "runs", data=KIT["data"]))).whole()
    assert (tmp_path / "runs/withkit/report/index.html").is_file()


def test_a_kit_that_was_cut_short_resumes_to_the_same_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, "clean_halves", stop)
        assert make(tmp_path / "cut") == 1
    assert not (tmp_path / "cut/pack/manifest.json").exists()
    with pytest.raises(StageError, match="is not a finished repair kit"):
        parse_config(with_kit(tmp_path / "cut", tmp_path))
    assert make(tmp_path / "cut") == 0
    for name in ("joint/model.safetensors", "meta/shared/start.safetensors", "pack/clean/test.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def test_other_settings_are_refused_and_restart_makes_it_anew(
    kit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(kit, "--no-failures") == 2
    assert "failures: True -> False" in capsys.readouterr().err
    assert make(kit, "--restart", joint=KIT["joint"] | {"rounds": 1}) == 0
    assert len(json.loads((kit / "joint/epochs.json").read_text())) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "resnet8_cifar"], "--weights is missing"),
        (["--set", "targets=[fog]"], "a kit serves targets that are not known yet"),
        (["--set", "train.shared=false"], "train.shared=false"),
        (["--set", "joint.draw=confidence"], "joint.draw=confidence"),
    ],
)
def test_what_a_kit_cannot_be_made_of_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "kit.yaml").write_text(yaml.safe_dump(KIT), encoding="utf-8")
    config = [] if options[0] == "--model" else ["--config", str(tmp_path / "kit.yaml")]
    assert main(["kit", "--out", str(tmp_path / "kit"), *config, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "kit").exists()


def test_only_a_kit_may_have_no_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(KIT | {"name": "none", "targets": []}), encoding="utf-8"
    )
    assert main(["run", "--config", str(tmp_path / "run.yaml"), "--storage", str(tmp_path)]) == 2
    assert "targets=[]: it must have 1 or more entries" in capsys.readouterr().err


def test_a_call_repairs_from_the_kits_theta_meta(whole: Path) -> None:
    from metarepair.models.build import load_deployed
    from tasks.datasets import dataset_info

    info, test = dataset_info("cifar10_sample"), load_dataset("cifar10_sample", "test")
    net = load_deployed("resnet8_cifar", "shipped:resnet8_cifar10", info).module
    failures = corrupted_images(test, np.arange(100), corruption="gaussian_noise", severity=5, seed=0)
    repaired = repair(
        net,
        (failures, test.labels_N[:100]),
        start=whole / "meta/shared",
        mean=info.mean,
        std=info.std,
        clean_training=(test.images_NHWC[100:150], test.labels_N[100:150]),
        config=RepairConfig(inner={"steps": 1}, task={"shots": 1}, repair={"episodes": 1, "tasks": 1}),
    )
    assert repaired.method == "metarepair"
    with pytest.raises(WeightsError):
        repair(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)),
            (failures, test.labels_N[:100]),
            start=whole / "meta/shared",
            clean_training=(test.images_NHWC[100:150], test.labels_N[100:150]),
            mean=info.mean,
            std=info.std,
        )


@pytest.mark.slow
def test_a_kit_on_an_object_store_repairs_as_the_local_one(whole: Path, tmp_path: Path, s3: str) -> None:
    for path in (path for path in whole.rglob("*") if path.is_file()):
        copy_file(path, place(s3) / "kits/one" / str(path.relative_to(whole)))
    weights = []
    for name, kit in (("here", str(whole)), ("there", f"{s3}/kits/one")):
        Pipeline(parse_config(with_kit(kit, tmp_path / name))).whole()
        weights.append(
            load_file(tmp_path / name / "withkit/repaired/gaussian_noise/metarepair/0/model.safetensors")
        )
    here, there = weights
    assert all(value.equal(there[key]) for key, value in here.items())
