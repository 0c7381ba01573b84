"""A run that fails or dies at any change of its files is never taken for done, and goes on to the same results.

METAREPAIR_KILLS multiplies the number of moments (default 1; `make accept` uses 5).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equal_runs import comparable
from metarepair.cli import main
from metarepair.stages.pipeline import Pipeline
from mutations import at_each_change

RUN = Path("runs") / "tiny"
MOMENTS = 2 * int(os.environ.get("METAREPAIR_KILLS", "1"))
ERRORS = [
    ("mine", errno.EIO),
    ("score", errno.EFBIG),
    ("train", errno.ESTALE),
    ("repair", errno.ENAMETOOLONG),
    ("report", errno.EDQUOT),
]


def command(verb: str, folder: Path, *options: str) -> list[str]:
    return [verb, "--config", str(folder / "tiny.yaml"), "--storage", str(folder / "runs"), *options]


def changes_of(folder: Path, arguments: list[str], **options: Any) -> int:
    """The number of changes that a command makes in the run."""
    with at_each_change(folder / RUN, lambda *_: None, **options) as paths:
        assert main(arguments) == 0
    return len(paths)


def in_a_child(do: Callable[[], object]) -> int:
    """Call `do` in a copy of this process, and return the exit code of the copy."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the threads of this process do not exist in its copy
        do()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_restart_that_dies_at_any_moment_goes_on_to_the_same_comparable(
    finished_run: Path, tmp_path: Path / RUN
) -> None:
    whole = comparable(finished_run / RUN)
    arguments = ("run", tmp_path / "counted", "--restart")
    shutil.copytree(finished_run, tmp_path / "counted")
    # Not the very last: the number of changes differs by a few from run to run.
    last = changes_of(tmp_path / "counted", command(*arguments)) - 10
    moments = np.linspace(1, last, MOMENTS).astype(int)
    assert comparable(tmp_path / "counted" / RUN) == whole
    for moment in moments.tolist():
        folder = tmp_path / str(moment)
        shutil.copytree(finished_run, folder)

        def die(number: int, _: str, moment: int = moment) -> None:
            if number == moment:
                os._exit(9)

        def dying(folder: Path = folder, die: Callable[[int, str], None] = die) -> None:
            with at_each_change(folder / RUN, die):
                main(command("run", folder, "--restart"))

        assert in_a_child(dying) == 9, moment
        assert main(command("run", folder)) == 0, moment
        assert comparable(folder / RUN) == whole, moment
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), ERRORS)
def test_an_error_of_the_storage_in_any_stage_is_one_paragraph(
    stage: str, number: int, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(stage, tmp_path, "--restart")
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    renames = changes_of(tmp_path, arguments, events=["os.rename"])  # a file is whole by then

    def fail(count: int, path: str) -> None:
        if count == renames // 2 + 1:
            raise OSError(number, os.strerror(number), path)

    capsys.readouterr()
    with at_each_change(tmp_path / RUN, fail, events=["os.rename"]):
        assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("metarepair: ")
    assert os.strerror(number) in last
    assert main(command("run", tmp_path)) == 0
    assert comparable(tmp_path / RUN) == comparable(finished_run / RUN)


def no_memory_for_numpy(*_: object) -> None:
    np.empty(2**62, np.uint8)


def no_memory_for_torch(*_: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def no_memory_for_python(*_: object) -> None:
    raise MemoryError  # without a message, as Python raises it


def no_memory_for_a_library(*_: object) -> None:
    raise ImportError("libtorch_cpu.so: failed to map segment from shared object")  # as under `ulimit -v`


@pytest.mark.parametrize(
    "exhaust", [no_memory_for_python, no_memory_for_numpy, no_memory_for_torch, no_memory_for_a_library]
)
@pytest.mark.parametrize("stage", ["mine", "score", "train", "repair"])
def test_a_lack_of_memory_is_one_paragraph_and_nothing_is_lost(
    stage: str,
    exhaust: Callable[..., None],
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = comparable(tiny_run / RUN)
    monkeypatch.setattr(Pipeline, stage, exhaust)
    assert main(command(stage, tiny_run)) == 1
    printed = capsys.readouterr().err
    assert printed.count("metarepair: ") == 1
    assert "Traceback" not in printed
    assert "memory" in printed
    assert "batch_size" in printed
    assert comparable(tiny_run / RUN) == before
