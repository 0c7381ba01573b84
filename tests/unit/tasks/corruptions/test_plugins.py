"""Test the corruptions of other packages: lookup, pixels, versions, and the refusal of broken ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugin_packages import CODE, install, plugin_path
from tasks.corruptions import CORRUPTIONS, CorruptionPlugin, category_of, corrupt, dose_for, plugins, resolve
from tasks.corruptions.plugins import (
    check_plugin_versions,
    find_plugin,
    plugin_names,
    plugin_settings,
    plugin_versions,
    plugins_and_refusals,
)
from tasks.corruptions.severity import TABLES
from tasks.errors import ConfigError, DataError
from tasks.keys import keyed_generator

IMAGES = np.random.default_rng(0).integers(256, size=(7, 16, 20, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with plugin_path(monkeypatch):
        yield


def grains(images: Any = IMAGES, *, ids: Any = None, severity: int = 3, **changes: Any) -> Any:
    ids = np.arange(len(images)) if ids is None else ids
    settings: dict[str, Any] = {"corruption": "grains", "seed": 0, **changes}
    return corrupt(images, image_ids_B=ids, severity=severity, **settings)


# Lookup


def test_a_plugin_is_found_by_its_name_in_any_case_and_gives_its_category(tmp_path: Path) -> None:
    install(tmp_path)
    assert resolve("Grains") == "grains"
    assert category_of("grains") == "noise"
    assert plugin_names() == ("grains",)
    assert "grains" not in CORRUPTIONS
    assert len(CORRUPTIONS) == 19


def test_without_plugins_nothing_is_found() -> None:
    assert plugin_names() == ()
    assert find_plugin("grains") is None
    with pytest.raises(ConfigError, match=r"^no corruption 'grains'\. There are: brightness, "):
        resolve("grains")


def test_an_unknown_name_has_plugins_among_the_near_names(tmp_path: Path) -> None:
    install(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no corruption 'grain'; did you mean 'grains'.* There are: .*grains"
    ):
        resolve("grain")
    with pytest.raises(ConfigError, match="no corruption 'fogg'; did you mean 'fog'"):
        category_of("fogg")


def test_a_category_may_be_a_word_of_its_own(tmp_path: Path) -> None:
    install(tmp_path, code=CODE.replace('category="noise"', 'category="film_2"'))
    assert category_of("grains") == "film_2"


def test_any_object_with_the_fields_is_a_plugin(tmp_path: Path) -> None:
    code = CODE.replace("OWN = CorruptionPlugin(", "import types\nOWN = types.SimpleNamespace(")
    install(tmp_path, code=code)
    assert not isinstance(sys.modules.get("grain_kit"), CorruptionPlugin)
    assert resolve("grains") == "grains"


def test_published_names_load_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, code="raise RuntimeError('half installed')")

    def fail(**_: Any) -> None:
        raise AssertionError("the entry points were read")

    monkeypatch.setattr(plugins, "entry_points", fail)
    assert resolve("GN") == "gaussian_noise"
    assert category_of("fog") == "weather"
    assert grains(corruption="fog").shape == IMAGES.shape
    assert plugin_versions(["fog", "SN"]) == {}


def test_a_broken_plugin_stops_only_what_names_it(tmp_path: Path) -> None:
    install(tmp_path / "good")
    install(tmp_path / "bad", code="1 / 0", entries={"broken": "OWN"}, distribution="bad-kit")
    assert plugin_names() == ("broken", "grains")
    assert resolve("grains") == "grains"
    with pytest.raises(ConfigError, match=r"'broken' of bad-kit 1\.0 .*ZeroDivisionError: division by zero"):
        resolve("broken")
    with pytest.raises(ConfigError, match="no corruption 'brokn'; did you mean 'broken'"):
        resolve("brokn")
    found, refused = plugins_and_refusals()
    assert [plugin.name for plugin in found] == ["grains"]
    assert len(refused) == 1
    assert "bad-kit 1.0" in refused[0]


# Pixels


@pytest.mark.parametrize("chunk", [2**18, 2 * 16 * 20 * 3])
def test_each_image_is_drawn_from_its_own_generator(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path)
    monkeypatch.setattr("tasks.corruptions.CHUNK_VALUES", chunk)
    ids = [3, 50, 2, 9, 4, 8, 1]
    found = grains(ids=ids, severity=4, seed=11)
    for image, number, result in zip(IMAGES, ids, found, strict=True):
        drawn = keyed_generator("corrupt", 11, "grains", 4, number).random(image.shape, dtype=np.float32)
        exact = np.clip(image + 60 * (drawn.astype(np.float64) - 0.5), 0, 255)
        assert np.abs(result - np.floor(exact + 2.0**-10)).max() <= 1
        assert (result == np.floor(exact + 2.0**-10)).mean() > 0.99


@pytest.mark.parametrize("severity", [1, 5])
def test_batches_order_and_layout_do_not_change_the_bytes(severity: int, tmp_path: Path) -> None:
    install(tmp_path)
    ids = np.arange(40, 47)
    together = grains(ids=ids, severity=severity)
    order = np.array([4, 0, 6, 2, 1, 5, 3])
    assert np.array_equal(grains(IMAGES[order], ids=ids[order], severity=severity), together[order])
    assert np.array_equal(grains(IMAGES[2:3], ids=ids[2:3], severity=severity), together[2:3])
    assert np.array_equal(grains(np.asfortranarray(IMAGES), ids=ids, severity=severity), together)
    assert not np.array_equal(grains(ids=ids, severity=severity, seed=1), together)
    assert grains(IMAGES[..., 0], severity=severity).shape == IMAGES.shape[:3]
    assert grains(IMAGES[:0], severity=severity).shape == (0, *IMAGES.shape[1:])


def test_the_change_grows_with_the_constants(tmp_path: Path) -> None:
    install(tmp_path)
    sizes = [np.abs(grains(severity=s).astype(float) - IMAGES).mean() for s in (1, 2, 3, 4, 5)]
    assert sizes == sorted(sizes)
    assert sizes[4] > 4 * sizes[0] > 0


def test_constants_may_differ_by_table_and_a_missing_table_is_refused(tmp_path: Path) -> None:
    rows = "[(10,), (20,), (40,), (60,), (80,)]"
    small = "{'cifar': [(1,)] * 5, 'imagenet': [(100,)] * 5}"
    install(tmp_path, code=CODE.replace(rows, small))
    doses = {
        table: dose_for([1], corruption="grains", severity=2, seed=0, table=table)
        for table in ("cifar", "imagenet")
    }
    assert {table: dose.constants for table, dose in doses.items()} == {"cifar": (1.0,), "imagenet": (100.0,)}
    assert [dose.native_size for dose in doses.values()] == [32, 224]
    with pytest.raises(
        ConfigError, match=r"grain-kit 1\.0 .*no constants for the table 'tinyimagenet', only for "
    ):
        grains(table="tinyimagenet")
    assert TABLES == ("cifar", "tinyimagenet", "imagenet")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"severity": 6}, "severity=6 is outside 1..5"),
        ({"severity": True}, "severity=True is not an integer"),
        ({"seed": 0.5}, "seed=0.5 is not an integer"),
        ({"table": "cifr"}, "no severity table 'cifr'; did you mean 'cifar'"),
    ],
)
def test_wrong_settings_are_refused_as_for_the_published_ones(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    install(tmp_path)
    with pytest.raises(ConfigError, match=said):
        grains(**changes)
    with pytest.raises(DataError, match="images are float64"):
        grains(IMAGES / 255)


def test_a_result_that_the_plugin_keeps_is_not_changed(tmp_path: Path) -> None:
    """A plugin may return an array of its own that it uses again."""
    body = "return KEPT.setdefault(images.shape, np.full(images.shape, 7.5, np.float32))"
    install(tmp_path, code=CODE.replace("(strength,) = dose.constants", body) + "\nKEPT = {}\n")
    first = grains(seed=0)
    kept = sys.modules["grain_kit"].KEPT
    assert all((array == 7.5).all() for array in kept.values())
    assert np.array_equal(grains(seed=1), first)
    assert (first == 7).all()


# Refusals

APPLY = "return images + np.float32(strength) * (drawn - np.float32(0.5))"


def body(code: str) -> str:
    return CODE.replace(APPLY, code)


BROKEN = {
    "it cannot be imported": ("import no_such_package_at_all", "cannot be loaded .ModuleNotFoundError"),
    "it raises on import": ("raise RuntimeError('half\\ninstalled')", "cannot be loaded .RuntimeError"),
    "it exits on import": ("raise SystemExit(3)", "cannot be loaded .SystemExit: 3"),
    "it has no such object": ("OTHER = 1", "cannot be loaded .AttributeError"),
    "it is a number": ("OWN = 1", "is a int without 'name'"),
    "it lacks a category": (
        CODE + "import types\nOWN = types.SimpleNamespace(name='grains', constants=1, apply=len)",
        "without 'category'.* a CorruptionPlugin has name, category, constants, apply",
    ),
    "a field raises": (
        CODE + "class Own:\n    name = property(lambda self: 1 / 0)\nOWN = Own()",
        "without 'name' .ZeroDivisionError",
    ),
    "it has another name": (CODE.replace('"grains"', '"grain"'), "names itself 'grain'; both names must be equal"),
    "its category is a sentence": (CODE.replace('"noise"', '"Film noise"'), "has the category 'Film noise'"),
    "its category is None": (CODE.replace('category="noise"', "category=None"), "has the category None"),
    "it cannot be called": (CODE.replace("apply=grains", "apply='grains'"), "has a str for 'apply', not a function"),
    "a severity is missing": (CODE.replace("(10,), ", ""), "must be five tuples of finite numbers"),
    "rows differ in length": (CODE.replace("(10,)", "(10, 1)"), "all of one length"),
    "rows are empty": (CODE.replace("[(10,), (20,), (40,), (60,), (80,)]", "[()] * 5"), "must be five tuples"),
    "rows are numbers": (CODE.replace("(10,), (20,), (40,), (60,), (80,)", "1, 2, 3, 4, 5"), "must be five tuples"),
    "a constant is a word": (CODE.replace("(10,)", "('10',)"), "must be five tuples"),
    "a constant is NaN": (CODE.replace("(10,)", "(float('nan'),)"), "must be five tuples"),
    "there are no constants": (CODE.replace("[(10,), (20,), (40,), (60,), (80,)]", "{}"), "has no constants"),
    "constants are one column": (
        CODE.replace("[(10,), (20,), (40,), (60,), (80,)]", "np.ones((7, 1))"),
        "has the constants array.*must be five tuples",
    ),
    "constants are None": (CODE.replace("[(10,), (20,), (40,), (60,), (80,)]", "None"), "has the constants None"),
    "a table is unknown": (
        CODE.replace("[(10,), (20,), (40,), (60,), (80,)]", "{'cifr': [(1,)] * 5}"),
        "no severity table 'cifr'; did you mean 'cifar'",
    ),
    "it fails on images": (body("1 / 0"), r"failed .ZeroDivisionError: .*images \[3, 32, 32, 3\]"),
    "it writes into the images": (body("images += 1"), "failed .ValueError: .*read-only"),
    "it returns nothing": (body("pass"), "returned a NoneType, not an array"),
    "it returns a list": (body("return images.tolist()"), "returned a list, not an array"),
    "it returns float64": (body("return images * 1.0"), r"returned float64 \[3, 32, 32, 3\].*must return uint8"),
    "it drops a channel": (body("return images[..., :1]"), r"returned uint8 \[3, 32, 32, 1\]"),
    "it returns one image": (body("return images[0]"), r"returned uint8 \[32, 32, 3\]"),
    "it returns NaN": (body("return np.full(images.shape, np.nan, np.float32)"), "NaN or infinite"),
    "it draws elsewhere": (
        body("return np.random.default_rng().integers(256, size=images.shape, dtype=np.uint8)"),
        "other pixels in another batch or call",
    ),
    "it mixes images": (body("return images[::-1]"), "must neither mix images nor keep state"),
    "it shares draws": (
        body(
            "return images + np.float32(strength) * next(iter([drawn[0]]))"
        ),
        "all numbers of an image before those of the next",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_refused_in_one_paragraph_that_names_its_package(
    kind: str, tmp_path: Path
) -> None:
    code, said = BROKEN[kind]
    install(tmp_path, code=code, version="2.3")
    for refused in (resolve, category_of, lambda name: plugin_versions([name])):
        with pytest.raises(ConfigError, match=said) as caught:
            refused("grains")
        assert str(caught.value).startswith(
            "The corruption 'grains' of grain-kit 2.3 (entry point grain_kit:OWN, "
        )
        assert "\n" not in str(caught.value)
    assert resolve("fog") == "fog"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fog", "takes the name of the published corruption 'fog'"),
        ("Fog", "takes the name of the published corruption 'fog'"),
        ("gn", "takes the name of the published corruption 'gaussian_noise'"),
        ("SKN", "takes the name of the published corruption 'speckle_noise'"),
        ("Grain", "has a name of other characters"),
        ("2grains", "has a name of other characters"),
        ("grains-2", "has a name of other characters"),
        ("_grains", "has a name of other characters"),
        ("../grains", "has a name of other characters"),
        ("körner", "has a name of other characters"),
    ],
)
def test_a_wrong_name_is_refused_with_its_whole_package_and_no_other(
    name: str, said: str, tmp_path: Path
) -> None:
    install(tmp_path / "wrong", entries={name: "OWN", "grains": "OWN"}, version="0.9")
    install(
        tmp_path / "right",
        code=CODE.replace("grains", "sand"),
        entries={"sand": "OWN"},
        distribution="sand-kit",
    )
    assert resolve("sand") == "sand"
    assert resolve("fog") == "fog"
    assert resolve("GN") == "gaussian_noise"
    assert plugin_names() == ("grains", "sand")
    for asked in ("grains", name):
        if asked.lower() in ("fog", "gn", "skn"):
            continue
        with pytest.raises(ConfigError, match=said) as caught:
            resolve(asked)
        assert f"{name!r} of grain-kit 0.9" in str(caught.value)
    assert len(plugins_and_refusals()[1]) == 2


def test_a_name_of_two_packages_is_refused_with_both(tmp_path: Path) -> None:
    install(tmp_path / "first")
    install(tmp_path / "second", distribution="other-kit", version="3")
    with pytest.raises(
        ConfigError, match=r"'grains' is in grain-kit 1\.0 and in other-kit 3 .*Uninstall all but one"
    ):
        resolve("grains")


def test_a_package_without_a_version_is_refused(tmp_path: Path) -> None:
    install(tmp_path, version=None)
    with pytest.raises(ConfigError, match=r"grain-kit .*has no version to compare with others"):
        resolve("grains")


def test_a_plugin_that_fails_later_is_refused_with_the_shape_and_constants(tmp_path: Path) -> None:
    install(tmp_path, code=body("return images // (images.shape[1] - 16)"))
    with (
        pytest.raises(
            ConfigError, match=r"on images \[7, 16, 20, 3\] with the constants \[40\.0\]"
        ) as caught,
        np.errstate(divide="raise"),
    ):
        grains()
    assert isinstance(caught.value.__cause__, FloatingPointError)


def test_errors_of_ours_and_lack_of_memory_pass_unchanged(tmp_path: Path) -> None:
    lines = "from tasks.errors import DataError\n"
    for folder, raised in (("one", "DataError('too small')"), ("two", "MemoryError()")):
        broken = body(f"if images.shape[1] == 16: raise {raised}\n    return images")
        install(tmp_path / folder, code=lines + broken, distribution=f"kit-{folder}", entries={folder: "OWN"})
        text = (tmp_path / folder / f"kit_{folder}.py").read_text(encoding="utf-8")
        (tmp_path / folder / f"kit_{folder}.py").write_text(text.replace("grains", folder), encoding="utf-8")
    with pytest.raises(DataError, match=r"^too small$"):
        grains(corruption="one")
    with pytest.raises(MemoryError):
        grains(corruption="two")


# Versions


def test_versions_are_those_of_the_packages_of_plugins_alone(tmp_path: Path) -> None:
    install(tmp_path, version="1.2.post3")
    assert plugin_versions(["fog", "grains", "Grains", "GN"]) == {"grains": "grain-kit==1.2.post3"}
    with pytest.raises(ConfigError, match="no corruption plugin 'grain'; did you mean 'grains'"):
        plugin_versions(["grain"])


def test_the_setting_for_manifests_is_left_out_without_plugins(tmp_path: Path) -> None:
    assert plugin_settings(["fog", "GN"]) == {}
    install(tmp_path)
    assert plugin_settings(["fog", "grains"]) == {"corruption_plugins": {"grains": "grain-kit==1.0"}}


def test_the_same_version_passes_and_another_is_refused_with_both(tmp_path: Path) -> None:
    install(tmp_path, version="1.2")
    check_plugin_versions({})
    check_plugin_versions({"grains": "grain-kit==1.2"})
    with pytest.raises(
        ConfigError, match=r"of grain-kit==1\.3, but a worker has that of grain-kit==1\.2\. Install"
    ):
        check_plugin_versions({"grains": "grain-kit==1.3"}, where="a worker")
    with pytest.raises(ConfigError, match=r"of sand-kit==1\.2, but this process has that of grain-kit==1\.2"):
        check_plugin_versions({"grains": "sand-kit==1.2"})


def test_a_process_without_the_plugin_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'grains' is that of grain-kit==1\.3, but a worker has no such corruption"
    ):
        check_plugin_versions({"grains": "grain-kit==1.3"}, where="a worker")
