"""Check that each dotted name of a module, class or function in the docs and docstrings exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dotted import look_up

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path
    for pattern in (
        "README.md",
        "docs/**/*.md",
        "cluster/README.md",
        "metarepair/**/*.py",
        "tasks/**/*.py",
        "distributed/**/*.py",
    )
    for path in ROOT.glob(pattern)
    if path.name != "log.md"  # it records past states
)
NAME = re.compile(r"(?<![\w./-])(?:tasks|metarepair|distributed)(?:\.[A-Za-z_]\w*)+(?<!\.py)(?!\w)")
# Not paths to look up: the name of an encoding error handler, the command line, which runs when imported, a group of
# entry points, and a file.
OTHERS = {
    "metarepair.plain",
    "metarepair.__main__",
    "metarepair.corruptions",
    "metarepair.schema.json",
    "metarepair.json",
}


def is_there(name: str) -> bool:
    try:
        look_up(name)
    except LookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("metarepair.engine.inner.adapt", True),
        ("metarepair.engine.inner.adapted", False),
        ("metarepair.inner", False),
        ("metarepair.repair", True),
    ],
)
def test_only_existing_names_are_found(name: str, there: bool) -> None:
    assert is_there(name) is there


@pytest.mark.slow
def test_every_dotted_name_of_ours_in_a_text_exists() -> None:
    named = {name for page in PAGES for name in NAME.findall(page.read_text(encoding="utf-8"))} - OTHERS
    assert len(named) > 200
    assert sorted(name for name in named if not is_there(name)) == []
