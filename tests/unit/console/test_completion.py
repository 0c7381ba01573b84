"""Check that bash completes verbs, options, choices and settings, and that each shell gets a script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metarepair.cli import VERBS, main

ROOT = Path(__file__).parents[3]
BASH = shutil.which("bash")
# What bash does at a press of TAB, with the script as a user sources it.
TAB = """
eval "$(metarepair completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
complete -p metarepair >&2
_python_argcomplete metarepair
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with the program `metarepair`."""
    path = tmp_path / "metarepair"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m metarepair "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return tmp_path


def completions(program: Path, line: str) -> list[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}", "PYTHONPATH": paths}
    done = subprocess.run(
        [str(BASH), "-c", TAB, "bash", line], capture_output=True, text=True, env=environment, check=True
    )
    assert "_python_argcomplete metarepair" in done.stderr  # bash calls this function at TAB
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarepair ", {*VERBS}),
        ("metarepair dia", {"diagnose"}),
        ("metarepair fix --ke", {"--keep-ok"}),
        ("metarepair export --format o", {"onnx", "original"}),
        ("metarepair export --pu", {"--push", "--public"}),
        ("metarepair config --explain train.ep", {"train.episodes"}),
        ("metarepair run --set inner.ra", {"inner.rate="}),
    ],
)
def test_bash_completes(program: Path, line: str, expected: set[str]) -> None:
    found = set(completions(program, line))
    assert expected <= found
    assert found - expected <= {"--help", "--version", "-h"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_for_metarepair(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "metarepair" in script
    assert ("complete --command metarepair" in script) is (shell == "fish")
    assert ("#compdef metarepair" in script) is (shell != "fish")


def test_an_unknown_shell_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["completion", "tcsh"])
    assert end.value.code == 2
    assert "bash, zsh, fish" in capsys.readouterr().err.replace("'", "")


def test_these_verbs_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom metarepair.cli import main\n"
        "for words in sys.argv[1:]:\n    assert main(words.split()) == 0\n"
        "print(sorted({'torch', 'timm', 'ray', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    verbs = ["config --schema", "config --explain train", "completion bash", "init"]
    done = subprocess.run(
        [sys.executable, "-c", code, *verbs], capture_output=True, text=True, cwd=tmp_path, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "[]\n")
