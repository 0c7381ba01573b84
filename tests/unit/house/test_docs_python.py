"""Run every block of Python in the README and the docs as printed, on small stand-ins for a reader's data."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from kits import KIT
from metarepair.adaptation.repair_data import RepairData
from metarepair.config.kit import kit_defaults, merged
from metarepair.config.load import parse_config
from metarepair.methods import MethodContext
from metarepair.models.build import DeployedModel
from metarepair.repairs.export import export_program
from metarepair.repairs.hf_folder import export_folder
from metarepair.repairs.stage import repair_fairly
from metarepair.reports.card import unjudged_card
from plugin_packages import install, plugin_path
from small import clean_of, deployed_of, failures_of
from tasks.corruptions import corrupt

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "cluster/README.md"]
Names = dict[str, Any]
SMALL_RUN = """\
name: small
device: cpu
targets: [gaussian_noise]
data: {name: cifar10_sample, max_train_images: 100, max_test_images: 100}
mining: {experiences: [shot_noise, impulse_noise], severities: [5], collect: 20}
features: {extractor: deployed}
task: {shots: 1, query_size: 4}
inner: {steps: 1}
train: {episodes: 2, tasks: 1}
repair: {episodes: 1, tasks: 1, methods: [metarepair]}
evaluate: {others: []}
"""


def blocks(text: str) -> Iterator[str]:
    """Yield fenced and indented blocks. Empty lines split an indented block that is not Python as a whole."""
    fence = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    yield from (match[1] for match in fence.finditer(text))
    for match in re.finditer(r"(?:^|\n\n)((?: {4}.*\n|\n(?= {4}))+)", fence.sub("", text)):
        whole = re.sub(r"^ {4}", "", match[1], flags=re.MULTILINE)
        yield from [whole] if is_python(whole) else whole.split("\n\n")


def is_python(block: str) -> bool:
    """Whether a block is Python: it parses, and calls or imports something (YAML's `key: value` parses, too)."""
    try:
        tree = ast.parse(block)
    except SyntaxError:
        return bool(re.match(r"(from|import|def|class) \w", block))  # Python with a syntax error
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in ast.walk(tree))


def python_blocks() -> Iterator[tuple[str, str]]:
    """Yield (`page: first line`, block) of each block of Python."""
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
    for page, text in texts.items():
        for block in filter(is_python, blocks(text)):
            yield f"{page}: {block.splitlines()[0]}", block


def pixels(number: int, size: int = 16) -> Any:
    return np.random.default_rng(0).integers(256, size=(number, size, size, 3), dtype=np.uint8)


def small() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4, 3)).eval()


def nothing(_: pytest.MonkeyPatch) -> Names:
    return {}


def some_images(_: pytest.MonkeyPatch) -> Names:
    return {"images": pixels(2)}


def failing(_: pytest.MonkeyPatch) -> Names:
    """A model, and images that it misclassifies."""
    model, images = small(), pixels(60)
    dnn = DeployedModel(
        name="small", module=model, num_classes=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return {"model": model, "images": images, "labels": (dnn.logits(images).argmax(1).numpy() + 1) % 3}


def a_small_run(_: pytest.MonkeyPatch) -> Names:
    """A configuration that runs in seconds, in place of the shipped one."""
    Path("tune_configs").mkdir()
    Path("tune_configs/sample.yaml").write_text(SMALL_RUN, encoding="utf-8")
    return {}


def a_small_densenet(monkeypatch: pytest.MonkeyPatch) -> Names:
    smaller = partial(timm.create_model, block_config=(1, 1, 1, 1), growth_rate=4)
    monkeypatch.setattr(timm, "create_model", smaller)
    return {}


def a_folder_of_photos(_: pytest.MonkeyPatch) -> Names:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("photos") / part / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels(1)[0]).save(folder / "one.png")
    return {}


def repaired_weights(_: pytest.MonkeyPatch) -> Names:
    Path("…").mkdir()
    state = timm.create_model("convnext_atto", num_classes=10).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, "…/model.safetensors")
    return made_by_timm(state)


def an_exported_folder(_: pytest.MonkeyPatch) -> Names:
    module = timm.create_model("resnet10t", num_classes=3).eval()
    dnn = deployed_of(module, name="resnet10t")
    card = unjudged_card(
        model={"name": dnn.name, "stem": "imagenet"},
        classes=tuple("abc"),
        preprocessing=dnn.preprocessing,
        verdict="",
    )
    export_folder(dnn, pixels(2, 32), Path("hub"), card)
    return made_by_timm(module.state_dict())


def made_by_timm(state: Names) -> Names:
    """timm, which keeps what a block builds; `state`: the weights that it must have."""
    made: list[torch.nn.Module] = []
    create_model = timm.create_model
    return {
        "timm": SimpleNamespace(create_model=lambda *a, **k: made.append(create_model(*a, **k))),
        "made": made,
        "state": state,
    }


def has_the_weights(names: Names) -> None:
    (made,) = names["made"]
    assert names["state"].keys() == made.state_dict().keys()
    assert all(torch.equal(value, names["state"][key]) for key, value in made.state_dict().items())


def a_meta_gradient(names: Names) -> None:
    gradient = names["result"].gradient
    assert gradient.keys() == dict(names["module"].named_parameters()).keys()
    assert all(bool(value.isfinite().all()) for value in gradient.values())
    assert float(gradient["classifier.weight"].norm()) > 0


def the_method_repairs(names: Names) -> None:
    """Repair with the plugin of the docs, as the registry would call it."""
    dnn = deployed_of(small())
    failures = failures_of(np.arange(4) % 3, pixels(4), predicted_N=np.zeros(4, np.int64))
    clean = clean_of(failures)
    data = RepairData(target="snow", learn=failures, validation=failures, clean=clean)
    config = parse_config({"name": "unit", "mining": {"experiences": ["fog"]}})
    context = MethodContext(config=config, seed=0, settings=names["MySettings"](rate=0.1))
    model = repair_fairly(names["MyMethod"](), dnn, data, context)
    assert model.method == "mine"
    assert all(torch.equal(v, dnn.module.state_dict()[k]) for k, v in model.state().items())


def shapes(names: Names) -> None:
    assert names["corrupted"].shape == (2, 16, 16, 3)


def the_plugin_corrupts(names: Names) -> None:
    """Install the plugin of the docs as a package, and apply it by its name."""
    code = dict(python_blocks())["docs/corruptions.md: import numpy as np"]
    with pytest.MonkeyPatch.context() as patch, plugin_path(patch):
        install(Path("package"), code=code, entries={"dust": "DUST"}, distribution="my-package")
        black = np.zeros((20, 32, 32, 3), np.uint8)
        dusty = corrupt(black, image_ids_B=range(20), corruption="dust", severity=5, seed=0)
    assert names["DUST"].name == "dust"
    assert set(np.unique(dusty)) == {0, 255}
    assert (dusty == 255).mean() == pytest.approx(0.1, abs=0.01)


def is_repaired(names: Names) -> None:
    assert isinstance(names["repaired"].module, nn.Module)
    assert 0 <= names["repaired"].validation_after <= 1


def costs_are_known(names: Names) -> None:
    is_repaired(names)
    assert names["repaired"].clean_before > 0.5


def two_photos(names: Names) -> None:
    assert names["test"].classes == ("cat", "dog")
    assert names["test"].images(np.arange(2)).shape == (2, 64, 64, 3)


def a_report(names: Names) -> None:
    assert names["config"].name == "mine"
    assert Path("runs/mine/report/index.html").is_file()


def labelled_images(_: pytest.MonkeyPatch) -> Names:
    images = np.random.default_rng(0).integers(256, size=(4, 9, 9, 3), dtype=np.uint8)
    return {"images": images, "labels": [0, 1, 1, 0], "days": ["mon", "mon", "tue", "wed"]}


def a_table(names: Names) -> None:
    table = pq.read_table("night.parquet")
    assert table["label"].to_pylist() == names["labels"]
    assert table["group"].to_pylist() == names["days"]


def a_model_by_brightness(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A model that tells classes by their brightness, clean images, darker photographs, and a kit of seconds."""
    values = {key: value for key, value in KIT.items() if key != "data"}
    values["mining"] = values["mining"] | {
        "experiences": ["brightness", "snow"]
    }  # which change the brightness
    monkeypatch.setattr(
        "metarepair.repair_kit.kit_defaults", lambda **_: merged(kit_defaults(workers=0), values)
    )
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    levels = torch.tensor([-1.0, 0.0, 1.0])
    with torch.no_grad():
        model[2].weight.copy_(levels[:, None].expand(3, 3))
        model[2].bias.copy_(-1.5 * levels**2)
    labels = np.arange(240) % 3
    noise = np.random.default_rng(0).integers(40, size=(240, 32, 32, 3))
    images = (40 + 75 * labels[:, None, None, None] + noise).astype(np.uint8)
    return {
        "model": model,
        "images": images,
        "photographs": (0.6 * images).astype(np.uint8),
        "labels": labels,
    }


def folders_of_photos(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A model that tells classes by their brightness, and class folders of clean images and darker photographs."""
    names = a_model_by_brightness(monkeypatch)
    for folder, images in (("clean", names["images"]), ("failures", names["photographs"])):
        for number, (image, label) in enumerate(zip(images, names["labels"], strict=True)):
            path = Path("photos", folder, "abc"[label], f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return {"model": names["model"]}


def an_exported_program(_: pytest.MonkeyPatch) -> Names:
    dnn, images = deployed_of(small()), pixels(4)
    export_program(dnn, images, "torch", Path(), class_names=("cat", "dog", "owl"), name="repaired.pt2")
    return {"images": images, "dnn": dnn}


def as_the_dnn_says(names: Names) -> None:
    labels = names["dnn"].logits(names["images"]).argmax(1)
    assert names["names"] == [("cat", "dog", "owl")[label] for label in labels]


def is_written(names: Names) -> None:
    is_repaired(names)
    assert (
        json.loads(Path("night/card.json").read_text(encoding="utf-8"))["weights"]["file"]
        == "model.safetensors"
    )
    for path in ("night.pt2", "hub/config.json", "night.html"):
        assert Path(path).stat().st_size, path


def is_fixed(names: Names) -> None:
    fixed = names["fixed"]
    assert fixed.before < 1
    assert fixed.kept == (fixed.method == "none")
    assert names["kit"].experiences == ("brightness", "snow")
    assert "<html" in Path("report.html").read_text(encoding="utf-8")
    held = load_file("fixed/model.safetensors")
    assert json.loads(Path("fixed/card.json").read_text(encoding="utf-8"))["method"] == fixed.method
    assert all(value.equal(held[name]) for name, value in fixed.module.state_dict().items())


# The names that a block needs, and the assertions on the names that it defines.
RUNS: dict[str, tuple[Callable[[pytest.MonkeyPatch], Names], Callable[[Names], None]]] = {
    "README.md: from metarepair import repair": (failing, is_repaired),
    "docs/architecture.md: from metarepair.config.load import load_config": (a_small_run, a_report),
    "docs/corruptions.md: from tasks.corruptions import corrupt": (some_images, shapes),
    "docs/corruptions.md: import numpy as np": (nothing, the_plugin_corrupts),
    "docs/data.md: from tasks.datasets import DataSource, dataset_info, load_dataset": (
        a_folder_of_photos,
        two_photos,
    ),
    "docs/environments.md: from metarepair import save_images": (labelled_images, a_table),
    "docs/export.md: import json": (an_exported_program, as_the_dnn_says),
    "docs/export.md: from metarepair import repair": (failing, is_written),
    'docs/export.md: timm.create_model("local-dir:hub", pretrained=True)': (
        an_exported_folder,
        has_the_weights,
    ),
    "docs/kit.md: from metarepair import RepairKit": (a_model_by_brightness, is_fixed),
    "docs/meta_gradient.md: import timm, torch": (a_small_densenet, a_meta_gradient),
    "docs/methods.md: from metarepair.methods import Method, repaired_from": (nothing, the_method_repairs),
    'docs/models.md: timm.create_model("convnext_atto", num_classes=10, checkpoint_path="…/model.safetensors")': (
        repaired_weights,
        has_the_weights,
    ),
    "docs/models.md: from metarepair import RepairConfig, repair": (failing, is_repaired),
    "docs/your-model.md: from metarepair import repair": (folders_of_photos, costs_are_known),
}


def test_every_block_of_python_is_listed_to_run() -> None:
    assert [name for name, _ in python_blocks()] == list(RUNS)


SLOW = {  # whole runs
    "docs/architecture.md: from metarepair.config.load import load_config",
    "docs/kit.md: from metarepair import RepairKit",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RUNS]
)
def test_a_block_of_python_runs_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, assert_outcome = RUNS[name]
    names: Names = {"__name__": "docs", **before(monkeypatch)}
    exec(compile(dict(python_blocks())[name], name, "exec", dont_inherit=True), names)
    assert_outcome(names)


def test_the_example_in_the_docstring_of_the_api_module_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        ast.get_docstring(ast.parse((ROOT / "metarepair/repairs/api.py").read_text(encoding="utf-8"))) or ""
    )
    example = text[text.index("from metarepair import repair") :]
    names = failing(monkeypatch)
    exec(compile(example.split("\n\n")[0], "metarepair/repairs/api.py", "exec", dont_inherit=True), names)
    is_repaired(names)
