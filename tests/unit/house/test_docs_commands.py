"""Check that the program accepts every command line in the README, the docs and the comments of YAML files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from metarepair.cli import _parser
from metarepair.config.load import known_keys, load_config
from metarepair.console.kit_options import load_kit_config

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "cluster").glob("*.*")),
    ROOT / "cluster/Dockerfile",
    *sorted((ROOT / "tune_configs").glob("*.yaml")),
    *sorted((ROOT / "examples").glob("*.py")),
    ROOT / "benchmarks/README.md",
]
# A program at the start of a line, or after variables, `# Command:`, a launcher or `python -m`. Text after two spaces
# and a # or a bracket is a remark; after > it is the file that takes the output.
START = re.compile(
    r"^[#\s]*(?:Command:)?\s*(?:[A-Z_]+=\S+ )*(?:docker run .*? |ray job submit .*? -- )?"
    r"(?:\.venv/bin/)?(?:python -m )?(?P<line>(?:metarepair|benchmarks\.\w+)(?= [a-zA-Z-]|$).*)$"
)
FOLDERS = ("tune_configs/", "cluster/", "docs/", "examples/", "benchmarks/")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield (page, words) of each command line, with its continuation lines."""
    for page in PAGES:
        text = re.sub(r"\\\n[#\s]*", "", page.read_text(encoding="utf-8"))
        for line in text.splitlines():
            match = START.match(re.sub(r"(\s{2,}(#|\()| > ).*$", "", line))
            if match and (line.startswith(("    ", "#", "  ")) or "python -m" in line):
                yield str(page.relative_to(ROOT)), shlex.split(match["line"])


COMMANDS = [(page, words) for page, words in commands() if words[0] == "metarepair" and len(words) > 1]


def test_the_search_finds_the_command_lines() -> None:
    """Check a minimum count and some pages that are known to have command lines."""
    assert len(COMMANDS) >= 40
    pages = {page for page, _ in COMMANDS}
    assert pages >= {
        "README.md",
        "docs/models.md",
        "docs/tune.md",
        "cluster/README.md",
        "cluster/rayjob.yaml",
    }
    configs = {page for page in pages if page.startswith("tune_configs/")}
    assert configs == {str(path.relative_to(ROOT)) for path in (ROOT / "tune_configs").glob("*.yaml")}


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{p}: {' '.join(w)}" for p, w in COMMANDS])
def test_a_command_line_is_accepted(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        given = _parser().parse_args(words[1:])
    except SystemExit as end:
        if end.code:
            pytest.fail(capsys.readouterr().err)
        return
    for word in words:
        if word.startswith(FOLDERS):
            assert (ROOT / word).exists(), f"{page} names {word}"
    config = getattr(given, "config", None)
    if config is not None:
        shipped = (
            config if config.is_file() else Path("tune_configs/sample.yaml")
        )  # a reader's own file has the same keys
        if given.verb == "kit":
            given.config = shipped
            load_kit_config(given)
        else:
            load_config(shipped, list(getattr(given, "set", None) or []))


def test_every_setting_in_the_text_exists() -> None:
    keys, unknown = set(known_keys()), []
    for page in PAGES:
        for match in re.finditer(
            r"--set [\"']?([a-z_0-9]+(?:\.[a-z_0-9]+)*)=", page.read_text(encoding="utf-8")
        ):
            group = match[1].split(".")[0]
            if match[1] not in keys and group not in {"methods"}:
                unknown.append(f"{page.relative_to(ROOT)}: {match[0]}")
    assert unknown == []


def test_every_benchmark_in_the_text_exists() -> None:
    named = {
        match[1]
        for page in PAGES
        for match in re.finditer(r"python -m (benchmarks\.\w+)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [name for name in sorted(named) if find_spec(name) is None] == []
