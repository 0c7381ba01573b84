"""Wrong arguments in Python: each raises a UserError of one paragraph that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metarepair import RepairConfig, repair
from metarepair.config.load import load_config
from metarepair.methods import get_method, parse_limit
from tasks.corruptions import category_of, corrupt, resolve, severity_table
from tasks.datasets import DataSource, count_images, dataset_info, load_dataset
from tasks.distances import (
    bootstrap_interval,
    fid_infinity,
    frechet_distance,
    merge,
    merge_in_order,
    moments,
    scatter,
)
from tasks.errors import UserError
from tasks.experiences.failure_file import read_failures
from tasks.experiences.mining import split_failures
from tasks.sampling.confidence import confidence

pytestmark = pytest.mark.usefixtures("watched")

Make = Callable[[], object]
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.ones(40, np.int64)
FLOATS = np.zeros((40, 3, 8, 8), np.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def refused(call: Make, says: str) -> None:
    """Check that the call raises a UserError of one paragraph with these words; a warning would be another error."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 1500


def linear(*, classes: int = 3) -> nn.Module:
    """A DNN that finds class 0 in every image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.eye(classes)[0])
    return model


def called(failures: Any = (IMAGES, LABELS), **options: Any) -> Make:
    """A call of `repair` with valid arguments, but for those given."""
    given = {"model": linear(), "mean": MEAN, "std": STD} | options
    return lambda: repair(given.pop("model"), failures, **given)


class Broken:
    """A data set whose code raises an error."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Any:
        raise KeyError("the file is closed")


TOO_LONG = type("TooLong", (), {"__len__": lambda _: 9, "__getitem__": lambda _, i: [(IMAGES[0], 1)][i]})


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        # what they are
        (3, "int is neither (images, labels)"),
        (None, "NoneType is neither (images, labels)"),
        ("images", "images does not exist. Give a folder of class folders, or a table"),
        ({"images": IMAGES}, "dict is neither (images, labels)"),
        ((pair for pair in ()), "generator is neither (images, labels)"),
        (IMAGES, "item 0 is ndarray, not a pair"),
        ((IMAGES, LABELS, LABELS), "not a pair"),
        ((list(IMAGES), list(LABELS)), "not a pair"),
        ([], "there are no images"),
        ([None], "item 0 is NoneType, not a pair"),
        ([(IMAGES[0], 1, 2)], "item 0 is tuple, not a pair"),
        ([("cat.png", 1)], "an image is str"),
        ([(None, 1)], "an image is NoneType"),
        (Broken(), "item 0 cannot be read: Broken raised KeyError: 'the file is closed'"),
        (TOO_LONG(), "item 1 cannot be read: TooLong raised IndexError"),
        # images
        ((IMAGES > 3, LABELS), "images are bool"),
        ((IMAGES.astype(np.int32), LABELS), "images are int32"),
        ((IMAGES.astype(np.uint16), LABELS), "images are uint16"),
        ((IMAGES.astype(complex), LABELS), "images are complex128"),
        ((IMAGES.astype(object), LABELS), "images are object"),
        ((np.ma.array(IMAGES, mask=IMAGES > 3), LABELS), "images are a masked array"),
        ((IMAGES[None], LABELS), "images have the shape [1, 40, 8, 8, 3]"),
        ((IMAGES[:, :0], LABELS), "images have the shape [40, 0, 8, 3]"),
        ((IMAGES[..., :0], LABELS), "images have the shape [40, 8, 8, 0]"),
        ((np.zeros((40, 8, 8, 5), np.uint8), LABELS), "the images of failures have 5 channels"),
        ((np.zeros((40, 9, 9, 3), np.uint8), LABELS), "cannot take a batch of images of 9×9 pixels"),
        ((FLOATS * np.nan, LABELS), "image 0 has NaN or infinity"),
        ((FLOATS + np.inf, LABELS), "image 0 has NaN or infinity"),
        ((FLOATS.astype(float) + 1e300, LABELS), "image 0 has NaN or infinity"),
        ((FLOATS, LABELS), "mean was given, but the images are floats"),
        ([(IMAGES[0], 1), (IMAGES[0, :4], 1)], "the images have different sizes"),
        ([(IMAGES[0], 1), (FLOATS[0], 1)], "item 1 is float32 and item 0 is uint8"),
        ([(Image.fromarray(IMAGES[0]), 1), (FLOATS[0], 1)], "item 1 is float32 and item 0 is uint8"),
        ((torch.zeros(40, 3, 8, 8).to_sparse(), LABELS), "Give a dense tensor"),
        ((torch.zeros(40, 3, 8, 8, device="meta"), LABELS), "on meta cannot be read"),
        # labels
        ((IMAGES, LABELS[:5]), "40 images but 5 labels"),
        ((IMAGES, LABELS - 2), "the label of image 0 is -1"),
        ((IMAGES, LABELS + 2), "the label of image 0 is 3"),
        ((IMAGES, np.full(40, 2**62)), "the label of image 0 is 4611686018427387904"),
        ((IMAGES, np.full(40, 2**64 - 1, np.uint64)), "18446744073709551615 (uint64)"),
        ((IMAGES, LABELS.astype(float)), "the label of image 0 is 1.0 (float64)"),
        ((IMAGES, LABELS * np.nan), "the label of image 0 is nan"),
        ((IMAGES, LABELS.astype(bool)), "the label of image 0 is True"),
        ((IMAGES, ["cat"] * 40), "the label of image 0 is 'cat'"),
        ((IMAGES, [None] * 40), "the label of image 0 is None"),
        ((IMAGES, np.eye(3, dtype=int)[LABELS]), "labels.argmax(1)"),
        ((IMAGES, 1), "labels are int"),
        ((IMAGES, None), "labels are NoneType"),
        # what a repair can learn from
        ((IMAGES[:0], LABELS[:0]), "there are no images"),
        ((IMAGES[:1], LABELS[:1]), "failures has one image"),
        ((IMAGES, LABELS * 0), "the model classifies all of them correctly"),
    ],
)
def test_failures_that_cannot_be_used_are_refused(failures: Any, says: str) -> None:
    refused(called(failures), says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mean": None}, "uint8 images need mean"),
        ({"std": None}, "uint8 images need std"),
        ({"mean": 0.5}, "is not one number for each channel"),
        ({"mean": ()}, "mean has no numbers"),
        ({"mean": "abc"}, "is not one number for each channel"),
        ({"mean": {"a": 1}}, "is not one number for each channel"),
        ({"mean": (None, 0.5, 0.5)}, "is not one number for each channel"),
        ({"mean": (True, True, True)}, "is not one number for each channel"),
        ({"mean": [[0.5], [0.5], [0.5]]}, "is not one number for each channel"),
        ({"mean": (0.5, 0.5)}, "mean=(0.5, 0.5) has 2 numbers"),
        ({"mean": (np.nan, 0.5, 0.5)}, "is outside 0..1"),
        ({"mean": (123, 116, 103)}, "divide both by 255"),
        ({"std": (np.nan, 0.5, 0.5)}, "must be above 0"),
        ({"std": (np.inf, 0.5, 0.5)}, "is outside 1/255..1"),
        ({"std": (0, 0.5, 0.5)}, "must be above 0"),
        ({"std": (-1, 0.5, 0.5)}, "must be above 0"),
        ({"std": (1e-30, 0.5, 0.5)}, "is outside 1/255..1"),
        ({"method": ""}, "no repair method ''"),
        ({"method": 3}, "method=3 is not a name"),
        ({"method": ["finetune"]}, "is not a name"),
        ({"method": "Finetune"}, "did you mean 'finetune'"),
        ({"method": "metarepair"}, "needs start"),
        ({"method": "apricot"}, "prepares DNNs before any repair"),
        ({"method": "deeprepair"}, "learns from the clean training split"),
        ({"start": "nowhere"}, "is not finished"),
        ({"start": ""}, "a path is empty"),
        ({"start": "~no-such-user/meta"}, "home folder of an unknown user"),
        ({"start": "s3://"}, "names no bucket"),
        ({"start": "ftp://host/meta"}, "has the scheme 'ftp'"),
        ({"start": "a\0b"}, "embedded null byte"),
        ({"start": "x" * 300}, "File name too long"),
        ({"start": "meta", "method": "finetune"}, "is for method='metarepair'"),
        ({"config": {}}, "config is dict; give RepairConfig"),
        ({"config": "a.yaml"}, "config is str; give RepairConfig"),
        ({"clean": 3}, "clean: int is neither"),
        ({"clean": []}, "clean: there are no images"),
        ({"clean": (IMAGES, LABELS[:3])}, "clean: 40 images but 3 labels"),
        ({"clean": (IMAGES, LABELS + 9)}, "clean: the label of image 0 is 10"),
        ({"clean": (IMAGES[..., :1], LABELS)}, "the images of clean have 1 channel"),
        ({"clean": (FLOATS * np.nan, LABELS)}, "clean: image 0 has NaN"),
        ({"clean": (np.zeros((40, 5, 5, 3), np.uint8), LABELS)}, "images of 5×5 pixels"),
        ({"clean_training": 3}, "clean_training: int is neither"),
        ({"clean_training": (FLOATS, LABELS)}, "clean_training came as floats"),
        ({"clean_training": (np.zeros((40, 9, 9, 3), np.uint8), LABELS)}, "Give both in one size"),
    ],
)
def test_options_of_a_repair_that_cannot_be_used_are_refused(options: dict[str, Any], says: str) -> None:
    refused(called(**options), says)


def returning(answer: Callable[[nn.Module, Tensor], object]) -> nn.Module:
    """A module with a layer of three outputs whose forward pass is `answer`."""

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, x_BCHW: Tensor) -> object:
            return answer(self.layer, x_BCHW.flatten(1))

    return Given()


def fail(layer: nn.Module, x_BF: Tensor) -> Tensor:
    raise KeyError("boom")


def with_weight(value: float) -> nn.Module:
    model = linear()
    with torch.no_grad():
        model[1].weight[0, 0] = value
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: "resnet50", "model is str"),
        (lambda: nn.Linear, "model is type"),
        (lambda: lambda x: x, "model is function"),
        (lambda: linear().state_dict(), "model is OrderedDict"),
        (nn.Identity, "has no parameters"),
        (nn.Sequential, "has no parameters"),
        (lambda: linear().requires_grad_(False), "have requires_grad=False"),
        (lambda: linear().to("meta"), "has no values (device meta)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "has no shape yet"),
        (lambda: with_weight(float("nan")), "is not finite"),
        (lambda: returning(lambda layer, x: (layer(x), 1)), "returns tuple"),
        (lambda: returning(lambda layer, x: {"logits": layer(x)}), "returns dict"),
        (lambda: returning(lambda *_: "cat"), "returns str"),
        (lambda: returning(lambda layer, x: layer(x).argmax(1)), "returns shape [2] for 2 images"),
        (lambda: returning(lambda layer, x: layer(x)[..., None]), "returns shape [2, 3, 1] for 2 images"),
        (lambda: returning(lambda layer, x: layer(x)[:1]), "returns shape [1, 3] for 2 images"),
        (lambda: returning(lambda layer, x: layer(x)[:, :1]), "has 1 classes"),
        (lambda: returning(lambda layer, x: layer(x).detach()), "Autograd finds no path"),
        (lambda: returning(lambda layer, x: layer(x) * torch.nan), "is not finite"),
        (lambda: returning(fail), "KeyError: 'boom'"),
    ],
)
def test_a_dnn_that_cannot_be_repaired_is_refused(make: Make, says: str) -> None:
    refused(called(model=make()), says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": -1}, "it must be at least 0"),
        ({"seed": "x"}, "it must be a whole number"),
        ({"seed": True}, "it must be a whole number"),
        ({"task": 3}, "it must be a group of settings"),
        ({"task": {"shot": 1}}, "did you mean 'task.shots'"),
        ({"inner": {"steps": 0}}, "a repair that takes no step changes nothing"),
        ({"inner": {"rate": float("nan")}}, "it must be a finite number"),
        ({"inner": {"rate": float("inf")}}, "it must be a finite number"),
        ({"inner": {"parts": []}}, "it must have 1 or more entries"),
        ({"repair": None}, "it must be a group of settings"),
        ({"repair": {"rates": 0.1}}, "it must be a list"),
        ({"repair": {"rates": ["a"]}}, "it must be a number"),
        ({"repair": {"episodes": 0}}, "it must be at least 1"),
        ({"repair": {"validation_fraction": 1}}, "it must be below 1"),
        ({"methods": {"finetune": 3}}, "it must be a group of settings"),
        ({"nope": 1}, "no setting 'nope'"),
    ],
)
def test_wrong_settings_of_a_repair_are_refused(settings: dict[str, Any], says: str) -> None:
    refused(lambda: RepairConfig(**settings), says)


PHOTOS = np.zeros((4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corruption": "nope"}, "no corruption 'nope'"),
        ({"corruption": None}, "no corruption 'None'"),
        ({"severity": 0}, "severity=0 is outside 1..5"),
        ({"severity": 9}, "severity=9 is outside 1..5"),
        ({"severity": 2.5}, "severity=2.5 is not an integer"),
        ({"severity": True}, "severity=True is not an integer"),
        ({"severity": "3"}, "severity='3' is not an integer"),
        ({"severity": float("nan")}, "severity=nan is not an integer"),
        ({"seed": "x"}, "seed='x' is not an integer"),
        ({"seed": 1.0}, "seed=1.0 is not an integer"),
        ({"table": "nope"}, "no severity table 'nope'"),
        ({"images": None}, "images are NoneType"),
        ({"images": list(PHOTOS)}, "images are list"),
        ({"images": torch.zeros(4, 32, 32, 3)}, "images are Tensor"),
        ({"images": PHOTOS / 255}, "images are float64"),
        ({"images": PHOTOS * np.nan}, "NaN or infinite"),
        ({"images": np.ma.array(PHOTOS)}, "images are a masked array"),
        ({"images": PHOTOS[0, :, :, 0]}, "for one grey image"),
        ({"images": PHOTOS[None]}, "images have shape [1, 4, 32, 32, 3]"),
        ({"images": PHOTOS.transpose(0, 3, 1, 2)}, "for channels first"),
        ({"images": np.zeros((4, 32, 32, 4), np.uint8)}, "for RGB with transparency"),
        ({"images": PHOTOS[:, :7]}, "at least 8x8 is needed"),
        ({"images": PHOTOS[:, :0]}, "at least 8x8 is needed"),
        ({"image_ids_B": [1]}, "image ids have shape [1] for 4 images"),
        ({"image_ids_B": 3}, "image ids have shape [] for 4 images"),
        ({"image_ids_B": [0.0, 1.0, 2.0, 3.0]}, "the image id 0.0 is not an integer"),
        ({"image_ids_B": list("abcd")}, "the image id 'a' is not an integer"),
        ({"image_ids_B": [True] * 4}, "the image id True is not an integer"),
    ],
)
def test_wrong_arguments_of_corrupt_are_refused(changes: dict[str, Any], says: str) -> None:
    given = {"images": PHOTOS, "image_ids_B": range(4), "corruption": "fog", "severity": 3, "seed": 0}
    given |= changes
    refused(lambda: corrupt(given.pop("images"), **given), says)


X = np.random.default_rng(0).normal(size=(30, 4))
GAP = np.where(X > 1, np.nan, X)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: moments(X[:1]), "needs at least 2 images"),
        (lambda: moments(X[:0]), "needs at least 2 images"),
        (lambda: moments(X[0]), "give one row per example"),
        (lambda: moments(X[None]), "give one row per example"),
        (lambda: moments(X[:, :0]), "D ≥ 1"),
        (lambda: moments(GAP), "is NaN, infinite or beyond"),
        (lambda: moments(GAP, names=["a"]), "1 names for 30 rows"),
        (lambda: moments(X * np.inf), "is NaN, infinite or beyond"),
        (lambda: moments(X * 1e200), "is NaN, infinite or beyond"),
        (lambda: moments(X + 1j), "features are complex128"),
        (lambda: moments([["a"], ["b"]]), "give real numbers"),
        (lambda: moments(None), "give real numbers"),
        (lambda: moments([[1, 2], [3]]), "features are not an array"),
        (lambda: moments(np.ma.array(X)), "features are a masked array"),
        (lambda: moments(torch.zeros(3, 2, requires_grad=True)), "requires grad"),
        (lambda: frechet_distance(moments(X), moments(X[:, :2])), "of 4 and of 2 dimensions"),
        (lambda: merge(scatter(X), scatter(X[:, :2])), "of 4 and of 2 dimensions"),
        (lambda: merge_in_order([]), "no parts"),
        (lambda: scatter(X[:0]), "no features"),
        (lambda: scatter(X[:1]).moments(), "needs at least 2 images"),
        (lambda: bootstrap_interval(X, X[:, :2], seed=0), "of 4 and of 2 dimensions"),
        (lambda: bootstrap_interval(X, X[:1], seed=0), "needs at least 2 images"),
        (lambda: bootstrap_interval(X, X * 1e80, seed=0), "beyond 1e+70"),
        (lambda: bootstrap_interval(X, X, seed=0, level=1), "level=1 is outside 0..1"),
        (lambda: bootstrap_interval(X, X, seed=0, level=np.nan), "level=nan is outside 0..1"),
        (lambda: bootstrap_interval(X, X, seed=0, resamples=1), "resamples=1 are too few"),
        (lambda: bootstrap_interval(X, X, seed=0, resamples=100.5), "resamples=100.5 is not an integer"),
        (lambda: bootstrap_interval(X, X, seed=0, method="nope"), "no method 'nope'"),
        (lambda: fid_infinity(X[:10], X, seed=0), "at least 20 per side"),
        (lambda: fid_infinity(X, X, seed=0, points=2), "points=2"),
    ],
)
def test_features_without_a_distance_are_refused(call: Make, says: str) -> None:
    refused(call, says)


def split(count: int, collect: int) -> Make:
    rows = np.arange(count)
    return lambda: split_failures(
        rows, rows, collect=collect, rule="random", split_by="image", seed=0, environment="fog"
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load_dataset("nope", "test"), "no data set 'nope'"),
        (lambda: dataset_info("nope"), "no data set 'nope'"),
        (lambda: load_dataset(3, "test"), "source is int; give the name"),  # type: ignore[arg-type]
        (lambda: load_dataset(Path("cifar10"), "test"), "Path; give the name"),  # type: ignore[arg-type]
        (lambda: load_dataset("cifar10_sample", "validation"), "split='validation' is not a split"),  # type: ignore[arg-type]
        (lambda: load_dataset("cifar10_sample", ["test"]), "split=['test'] is not a split"),  # type: ignore[arg-type]
        (lambda: dataset_info(None), "source is NoneType; give the name"),  # type: ignore[arg-type]
        (lambda: count_images([], "test"), "source is list; give the name"),  # type: ignore[arg-type]
        (lambda: DataSource(name=3), "no data set '3'"),  # type: ignore[arg-type]
        (lambda: DataSource(name="cifar10", root=3), "data.root=3 is not the path"),  # type: ignore[arg-type]
        (lambda: DataSource(name="imagefolder", image_size="x"), "data.image_size='x' is not a number"),  # type: ignore[arg-type]
        (lambda: DataSource(name="imagefolder", image_size=0), "data.image_size=0 is not a number"),
        (
            lambda: load_dataset(DataSource(name="cifar10", root="/nowhere"), "test"),
            "/nowhere is not a folder",
        ),
        (lambda: resolve(""), "no corruption ''"),
        (lambda: category_of("nope"), "no corruption 'nope'"),
        (lambda: severity_table("nope"), "no severity table 'nope'"),
        (lambda: get_method("nope"), "no repair method 'nope'"),
        (lambda: parse_limit(""), "budget='' is not a budget"),
        (lambda: parse_limit(3), "budget=3 is not text"),  # type: ignore[arg-type]
        (lambda: parse_limit("-1s"), "budget='-1s' is not a budget"),
        (lambda: parse_limit("0steps"), "must be above 0"),
        (lambda: load_config("absent.yaml"), "does not exist"),
        (lambda: load_config(3), "path is int"),  # type: ignore[arg-type]
        (lambda: load_config("a\0b"), "embedded null byte"),
        (lambda: load_config(None, "seed=1"), "overrides must be a list of texts"),
        (lambda: load_config(None, [3]), "overrides must be a list of texts"),  # type: ignore[list-item]
        (lambda: load_config(None), "the setting 'name' is missing"),
        (lambda: load_config(None, name="a", mining=3), "mining: it must be a group of settings"),
        (lambda: load_config(None, name="a", mining={"experiences": ["fog"]}, nope=3), "no setting 'nope'"),
        (
            split(0, 20),
            "fails on 0 examples, and mining.collect=20 needs at least one more than it collects. Mine more",
        ),
        (split(20, 20), "fails on 20 examples"),
        (lambda: confidence({}, rule="hinge", alpha=1.0, beta=1.0), "no distances"),
        (lambda: confidence({"fog": np.nan}, rule="hinge", alpha=1.0, beta=1.0), "is nan"),
        (lambda: confidence({"fog": -1.0}, rule="hinge", alpha=1.0, beta=1.0), "is -1.0"),
        (lambda: confidence({"fog": 1.0}, rule="nope", alpha=1.0, beta=1.0), "no confidence rule 'nope'"),  # type: ignore[arg-type]
        (lambda: confidence({"fog": 1.0}, rule="hinge", alpha=np.nan, beta=1.0), "alpha=nan"),
    ],
)
def test_wrong_arguments_of_other_functions_are_refused(call: Make, says: str) -> None:
    refused(call, says)


def test_a_path_as_start_of_a_repair_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta").write_text("x", encoding="utf-8")
    refused(called(start=tmp_path / "meta"), "cannot be read")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(64), b"ARROW1" + bytes(64)])
def test_a_damaged_file_of_failures_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "collect.arrow").write_bytes(content)
    refused(lambda: read_failures(tmp_path / "collect.arrow"), "collect.arrow")


@pytest.mark.parametrize("name", ["manifest.json", "start.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", bytes(64)])
def test_a_damaged_start_of_a_repair_is_refused(tiny_run: Path, name: str, content: bytes) -> None:
    meta = tiny_run / "runs" / "tiny" / "meta" / "gaussian_noise"
    (meta / name).write_bytes(content)
    refused(called(start=meta), f"gaussian_noise/{name}")
