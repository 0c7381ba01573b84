"""What a YAML file may hold: numbers, text, lists and maps of a bounded size. Anything else is one paragraph."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metarepair.config.load import load_config
from tasks.errors import ConfigError

LEAST = "name: least\nmining: {experiences: [fog]}\n"


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A watchdog: what waits for ever fails here, and no time is measured."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


REFUSED = {
    "an integer tag on text": "name: !!int x",
    "a float tag on text": "name: !!float x",
    "an integer of 5,000 digits": f"seed: {'9' * 5000}",
    "a hexadecimal integer of 5,000 digits": f"seed: 0x{'f' * 5000}",
    "a hexadecimal integer without digits": "seed: !!int 0x",
    "lists in lists": f"name: {'[' * 5000}{']' * 5000}",
    "lists in lists without an end": f"name: {'[' * 100_000}",
    "maps in maps": "\n".join(f"{' ' * n}a:" for n in range(2000)),
    "an anchor in itself": "name: &a [*a]",
    "a map in itself": "&a {name: x, mining: *a}",
    "an anchor bomb": bomb(9),
    "binary": "name: !!binary aGVsbG8=",
    "a set": "name: !!set {a, b}",
    "ordered pairs": "name: !!omap [a: 1]",
    "a Python object": "name: !!python/object/apply:os.system [echo]",
    "a timestamp tag": "name: !!timestamp 2024-02-30",
    "a local tag": "name: !own x",
    "an alias of nothing": "name: *a",
    "two documents": "name: a\n---\nname: b",
    "a tab as indentation": "mining:\n\texperiences: [fog]",
    "a null byte": "name: a\0b",
    "a list": "[1, 2]",
    "text": "just text",
    "nothing": "",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_anything_but_plain_settings_is_refused_in_one_paragraph(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with within(60), pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(refused.value)
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("date", ["2024-02-30", "2024-02-03", "2001-12-14t21:59:43.10-05:00"])
def test_a_date_is_text(date: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: n\nstorage_path: {date}\n{LEAST[12:]}", encoding="utf-8")
    assert load_config(tmp_path / "a.yaml").storage_path == date


def test_anchors_merges_and_numbers_are_read_as_before(tmp_path: Path) -> None:
    text = f"{LEAST}train: &t {{episodes: 1_0, outer_rate: 1e-3}}\ninner: {{rate: .5}}\nrepair: {{seeds: [0x10, 0]}}\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "a.yaml")
    assert (config.train.episodes, config.train.outer_rate, config.inner.rate) == (10, 0.001, 0.5)
    assert config.repair.seeds == (16, 0)
    merged = f"{LEAST}task: &t {{shots: 3}}\nrepair: {{seeds: &s [1, 2]}}\ncompare: {{seeds: *s}}\n"
    (tmp_path / "b.yaml").write_text(merged, encoding="utf-8")
    assert load_config(tmp_path / "b.yaml").compare.seeds == (1, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\x00\xff", "it is not a text file in UTF-8. Give a YAML file."),
        (b"", r"is empty, and settings are `key: value` lines"),
        (b"[1, 2]", "holds a list, and settings are"),
        (b"text", "holds one value, and settings are"),
        (b"a: [1\nb: c: d", r"line 2, column 2, is not YAML: .*Check the indentation"),
    ],
    ids=["binary", "empty", "a list", "text", "no YAML"],
)
def test_a_file_that_holds_something_else_is_told_in_plain_words(
    content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        load_config(tmp_path / "a.yaml")
    assert "codec" not in str(refused.value)
    assert "NoneType" not in str(refused.value)


def test_a_number_of_more_digits_than_python_writes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed=0x.*…: it must be at (most|least)"):
        load_config(None, name="a", mining={"experiences": ["fog"]}, seed=10**5000)


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it is a folder\. Give a YAML file in it"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"it does not exist\. .*tune_configs/sample\.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_a_wrong_setting_of_the_command_line_does_not_blame_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(LEAST, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.episodes='four': .*a\.yaml and --set\)"):
        load_config(tmp_path / "a.yaml", ["train.episodes=four"])


def test_a_file_of_settings_has_at_most_a_mebibyte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(LEAST + "#" * (1 << 20), encoding="utf-8")
    with pytest.raises(ConfigError, match="at most 1 MiB"):
        load_config(tmp_path / "a.yaml")


MANY = 45_000
SEARCH = {"space": {"seed": {"choice": [*range(MANY), 0]}}}


@pytest.mark.parametrize(
    ("overrides", "direct", "says"),
    [
        (["train={" + ", ".join(f"a{n}: 1" for n in range(MANY)) + "}"], {}, "no setting 'train.a0'"),
        ([], {"repair": {"seeds": [*range(MANY), 0]}}, "0 is listed twice"),
        ([], {"search": SEARCH}, "0 is listed twice"),
    ],
    ids=["map", "list", "search"],
)
def test_many_keys_and_values_are_checked_in_seconds(
    overrides: list[str], direct: dict[str, Any], says: str
) -> None:
    with within(60), pytest.raises(ConfigError, match=says):
        load_config(None, overrides, name="a", mining={"experiences": ["fog"]}, **direct)


@pytest.mark.parametrize("value", ["[*a]", "!!int x", "9" * 5000, "[" * 5000])
def test_values_on_the_command_line_are_bounded_as_well(value: str) -> None:
    with within(60), pytest.raises(ConfigError, match=r"is not a YAML value|must be"):
        load_config(None, ["name=a", f"seed={value}"], mining={"experiences": ["fog"]})


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_could_be_waited_for_without_end_is_no_file_of_settings(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        import socket

        socket.socket(socket.AF_UNIX).bind(str(path))
    with within(60), pytest.raises(ConfigError, match="give a regular file"):
        load_config(path)
