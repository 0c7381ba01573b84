"""Test the options that `diagnose`, `fix` and `kit` share."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from metarepair.console.photograph_options import (
    add_photograph_options,
    limits_of,
    photographs_of,
    shared_settings,
)
from tasks.errors import ConfigError

NEEDED = ["--images", "night", "--clean", "clean", "--model", "my:net", "--weights", "net.th"]


def parse(*words: str, out: str | None = "diagnosis") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_photograph_options(parser, out=out)
    return parser.parse_args(words)


def test_options_become_photographs() -> None:
    given = photographs_of(
        parse(*NEEDED, "--mean", "0.1", "0.2", "0.3", "--image-size", "32", "--classes", "a, b")
    )
    assert (given.images, given.clean, given.model, given.weights) == ("night", "clean", "my:net", "net.th")
    assert (given.out, given.mean, given.image_size, given.classes) == (
        "diagnosis",
        (0.1, 0.2, 0.3),
        32,
        ("a", "b"),
    )
    assert not given.only_failures


def test_failures_stand_in_place_of_images() -> None:
    given = photographs_of(parse("--failures", "wrong", *NEEDED[2:]))
    assert given.images == "wrong"
    assert given.only_failures


@pytest.mark.parametrize("words", [["--failures", "wrong"], []])
def test_images_or_failures_are_given_but_not_both(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*(NEEDED if words else NEEDED[2:]), *words)


def test_classes_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\nbig dog\n", encoding="utf-8")
    assert photographs_of(parse(*NEEDED, "--classes", str(tmp_path / "names.txt"))).classes == (
        "cat",
        "big dog",
    )


@pytest.mark.parametrize("option", ["--model", "--weights"])
def test_a_model_is_needed_without_a_kit(option: str) -> None:
    place = NEEDED.index(option)
    words = NEEDED[:place] + NEEDED[place + 2 :]
    with pytest.raises(ConfigError, match=option):
        photographs_of(parse(*words))
    assert photographs_of(parse(*words, "--kit", "kit")).kit == "kit"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 min", 120)]
)
def test_a_budget_is_read_in_seconds_minutes_or_hours(text: str, seconds: float) -> None:
    assert parse(*NEEDED, "--budget", text).budget == seconds


@pytest.mark.parametrize("text", ["soon", "0s", "-3m", "10 weeks", "5steps", "1e400s"])
def test_what_is_no_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*NEEDED, f"--budget={text}")
    assert "is no time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ([], {"max_clean_drop": 0.005, "min_gain": 0.0, "protected_classes": {}}),
        (["--max-broken", "0.02"], {"max_broken": 0.02, "min_gain": 0.0, "protected_classes": {}}),
        (
            ["--max-clean-drop", "0.03", "--min-gain", "0.05", "--protect", "cat=0.02"],
            {"max_clean_drop": 0.03, "min_gain": 0.05, "protected_classes": {"cat": 0.02}},
        ),
    ],
)
def test_clean_images_are_limited_unless_the_user_limits_them(words: list[str], limits: object) -> None:
    assert limits_of(parse(*NEEDED, *words)) == limits


@pytest.mark.parametrize("text", ["cat", "cat=much", "=0.1"])
def test_a_malformed_protection_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cat=0\.02"):
        limits_of(parse(*NEEDED, "--protect", text))


def test_shared_settings_hold_seed_and_workers() -> None:
    settings = shared_settings(parse(*NEEDED, "--seed", "7", "--workers", "2"))
    assert (settings["seed"], settings["workers"], settings["name"]) == (7, 2, "diagnosis")
