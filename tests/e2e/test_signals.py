"""A command that is stopped in any stage ends as with Ctrl-C: one line, its work is kept, and nothing is left behind.

The signals: Ctrl-C (also pressed twice), termination, and a closed terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from metarepair.cli import main
from tasks.storage.lease import LEASE
from waiting import wait_for_end, wait_until

ROOT = Path(__file__).parents[2]
# Enough work in each stage to be stopped in its middle: what is there then, what is not there yet, and the signals.
SETTINGS = {
    "mining": {"shard_images": 10},
    "features": {"shard_images": 2},
    "train": {"episodes": 8},
    "repair": {"seeds": [0, 1], "episodes": 4, "methods": ["none", "finetune", "metarepair"]},
}
STAGES = {
    "mine": ("experiences/*/**/*.arrow", "targets/*/manifest.json", [signal.SIGTERM]),
    "score": ("features/*/part-*.seal", "features/*/manifest.json", [signal.SIGINT, signal.SIGINT]),
    "train": ("meta/*/checkpoints/checkpoint-*/state.json", "meta/*/manifest.json", [signal.SIGHUP]),
    "repair": ("repaired/*/none/0/*", "repaired/*/manifest.json", [signal.SIGTERM, signal.SIGTERM]),
}


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(verb: str, config: Path, output: Path, temporary: Path) -> subprocess.Popen[bytes]:
    """Start a command as a shell does, in its own process group."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(temporary)}
    environment.pop("RAY_ADDRESS", None)
    with output.open("wb") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "metarepair", verb, "--config", str(config)],
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "on_ray"),
    # Ray's actors mine and score, Ray Train trains, and Ray's tasks repair; each start of Ray takes its time.
    [(0, ()), pytest.param(1, ("mine", "train"), marks=pytest.mark.distributed)],
)
def test_a_stopped_stage_ends_in_order_with_one_line(
    workers: int, on_ray: tuple[str, ...], tiny_settings: str, tmp_path: Path, short: Path
) -> None:
    settings = yaml.safe_load(tiny_settings) | {"storage_path": str(tmp_path / "runs"), "workers": workers}
    for section, values in SETTINGS.items():
        settings[section] |= values
    config, run = tmp_path / "tiny.yaml", tmp_path / "runs" / "tiny"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    for verb, (begun, unfinished, signals) in STAGES.items():
        if on_ray and verb not in on_ray:
            assert main([verb, "--config", str(config), "--set", "workers=0"]) == 0, verb
            continue
        printed = tmp_path / f"{verb}.txt"
        process = start(verb, config, printed, short)
        wait_until(lambda g=begun: list(run.glob(g)), f"{begun} in {verb}", process=process, output=printed)
        for number in signals:
            process.send_signal(number)
        assert wait_for_end(process, output=printed) == 1, (verb, printed.read_text(encoding="utf-8"))
        text = printed.read_text(encoding="utf-8")
        assert text.count("Stopped. Finished work is kept") == 1, (verb, text)
        assert "Traceback" not in text, (verb, text)
        assert not list(run.glob(unfinished)), f"{verb} had finished when the signal came"
        assert not (run / LEASE).exists(), verb
        with pytest.raises(ProcessLookupError):
            wait_until(lambda p=process: os.killpg(p.pid, 0), "the end of all its processes", limit_s=30.0)
        assert not list(short.iterdir()), f"{verb} left files of Ray"
        assert main([verb, "--config", str(config), "--set", "workers=0"]) == 0, verb


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_command_that_is_stopped_while_ray_starts_leaves_nothing(
    number: signal.Signals, tiny_settings: str, tmp_path: Path, short: Path
) -> None:
    config, printed = tmp_path / "tiny.yaml", tmp_path / "printed.txt"
    storage = {"storage_path": str(tmp_path / "runs"), "workers": 1}
    config.write_text(yaml.safe_dump(yaml.safe_load(tiny_settings) | storage), encoding="utf-8")
    process = start("mine", config, printed, short)
    wait_until(
        lambda: list(short.glob("ray-*/session_*/logs")), "Ray's start", process=process, output=printed
    )
    process.send_signal(number)
    assert wait_for_end(process, output=printed) == 1, printed.read_text(encoding="utf-8")
    assert "Stopped. Finished work is kept" in printed.read_text(encoding="utf-8")
    assert "Traceback" not in printed.read_text(encoding="utf-8")
    with pytest.raises(ProcessLookupError):
        wait_until(lambda: os.killpg(process.pid, 0), "the end of all its processes", limit_s=30.0)
    assert not list(short.iterdir())
