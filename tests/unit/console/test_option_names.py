"""Test that users who typed options are told of options, not of settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from metarepair.cli import main
from metarepair.config.load import known_keys
from metarepair.console.option_names import OPTIONS, PROTECTED, in_options

PHOTOGRAPHS = ("--images", "photos")
MODEL = ("--model", "my:net", "--weights", "net.th")
KIT = "shipped:resnet8_cifar10"
ALL = (*PHOTOGRAPHS, *MODEL, "--clean", "clean")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fix", *ALL, "--max-broken", "2"), "--max-broken=2.0: it must be below 1"),
        (("fix", *ALL, "--max-clean-drop=-1"), "--max-clean-drop=-1.0: it must be at least 0"),
        (("diagnose", *ALL, "--protect", "big cat=7"), "--protect big cat=7.0: it must be at most 1"),
        (("fix", *ALL, "--min-gain", "3"), "--min-gain=3.0: it must be below 1"),
        (("fix", *ALL, "--mean", "5", "5", "5", "--std", "1", "1", "1"), "--mean=[5, 5, 5] is outside 0..1"),
        (("fix", *ALL, "--seed", "-1"), "--seed=-1: it must be at least 0"),
        (("fix", *ALL, "--kit", "shipped:no"), "--kit='shipped:no' is not shipped"),
        (("diagnose", *ALL, "--out", "a b"), "--out='a b': it may contain letters"),
        (("diagnose", *ALL), "--weights='{folder}/net.th': no such file"),
        (
            ("fix", *PHOTOGRAPHS, "--kit", KIT, "--clean", "no"),
            "--clean {folder}/no",
        ),
        (
            ("fix", *PHOTOGRAPHS, *MODEL[:2], "--weights", KIT),
            "--images {folder}/photos",
        ),
        (("kit", *ALL[2:], "--image-size", "0"), "--image-size=0: it must be at least 8"),
        (("kit", *ALL[2:], "--set", "data.image_size=0"), "data.image_size=0: it must be at least 8"),
    ],
)
def test_an_error_names_the_option(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in words else ("--out", "made")
    assert main([*words, *out]) == 2
    assert capsys.readouterr().err.startswith(f"metarepair: {said.format(folder=tmp_path)}")


def given(verb: str = "fix", **options: Any) -> argparse.Namespace:
    usual = dict.fromkeys(("images", "failures", "holdout", "clean", "image_size", "weights", "max_broken"))
    return argparse.Namespace(verb=verb, **(usual | {"clean": "clean", "images": "photos"} | options))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Set data.image_size=32 (--image-size).", "Set --image-size=32."),
        ("Give some: data.name and data.root (--clean).", "Give some: --clean."),
        ("environments.photographs.holdout a.csv has", "--holdout a.csv has"),
        ("outside limits.max_broken by 2 points", "outside --max-broken by 2 points"),
        ("/data.root/model.weights has mining.images", "/data.root/model.weights has mining.images"),
    ],
)
def test_settings_are_replaced_as_whole_words(text: str, said: str) -> None:
    assert in_options(text, given()) == said
    assert in_options(text, given("run")) == text


def test_failures_and_what_stands_in_for_clean_images_are_named_as_given() -> None:
    assert in_options("environments.photographs.table", given(images=None, failures="a")) == "--failures"
    assert in_options("data.root", given(clean="photos")) == "--images"
    assert in_options("data.root", given(images=None, failures="a", clean=None)) == "--clean"


def test_every_setting_of_an_option_exists() -> None:
    known = {*known_keys(), PROTECTED}
    assert [name for name in OPTIONS if name not in known and not name.startswith("environments.")] == []
