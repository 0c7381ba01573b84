"""`status` and `inspect` of a run take the same few files, however many runs lie beside it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from metarepair.cli import main

_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event in ("open", "os.scandir", "os.listdir"):
        _seen.append(str(arguments[0]))


sys.addaudithook(_hook)


def opened(arguments: list[str], storage: Path) -> int:
    """The number of files and folders of a storage folder that a command opens."""
    global _seen
    _seen = []
    try:
        assert main(arguments) == 0
        return len([path for path in _seen if path.startswith(str(storage))])
    finally:
        _seen = None


@pytest.mark.parametrize("verb", ["status", "inspect"])
def test_a_run_is_described_as_fast_beside_two_hundred_others(verb: str, tiny_run: Path) -> None:
    storage = tiny_run / "runs"
    alone = opened([verb, str(storage / "tiny")], storage)
    assert alone > 0
    for number in range(200):
        shutil.copytree(storage / "tiny", storage / f"tiny-{number}", copy_function=os.link)
    assert opened([verb, str(storage / "tiny")], storage) == alone
