"""Provide what all benchmarks share: interleaved timing, options, and output as a table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Times:
    """Seconds of each round, by competitor."""

    rounds_s: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Return a competitor's median seconds."""
        return statistics.median(self.rounds_s[name])

    def ratio(self, above: str, below: str) -> float:
        """Return the median over the rounds of above/below; within a round the two ran close together."""
        pairs = zip(self.rounds_s[above], self.rounds_s[below], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleave(
    competitors: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    finish: Callable[[], object] | None = None,
) -> Times:
    """Run A B C, A B C, … so that a slow phase of the machine affects all; each is called with the round's number.

    `finish` is called before each clock reading, for example to synchronise a GPU.
    """
    wait = finish or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(rounds):
        for name, run in competitors.items():
            wait()
            started = time.perf_counter()
            run(number)
            wait()
            seconds[name].append(time.perf_counter() - started)
            print(f"  round {number + 1} of {rounds}  {name:24s} {seconds[name][-1]:8.3f} s", flush=True)
    return Times(seconds)


def parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=text)
    made.add_argument(
        "--quick", action="store_true", help="fewer repetitions of the same sizes; within 3 minutes"
    )
    made.add_argument("--smoke", action="store_true", help="tiny sizes: only check that it runs")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return made


BENCH = "pip install --editable '.[bench]'"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package that a benchmark compares with and MetaRepair does not depend on. `install`: its install command."""

    name: str
    module: str
    install: str = BENCH


def add_peers(options: argparse.ArgumentParser, peers: Sequence[Peer]) -> None:
    """Add the option --without, which leaves a peer out; otherwise a missing peer ends the benchmark."""
    options.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[peer.name for peer in peers],
        help="leave this peer out; may be given more than once",
    )


def require_peers(peers: Sequence[Peer], *, without: Sequence[str] = ()) -> None:
    """Exit with one paragraph unless every peer that is not left out can be imported."""
    for peer in peers:
        if peer.name in without:
            print(f"Left out by --without: {peer.name}.", flush=True)
            continue
        try:
            import_module(peer.module)
        except Exception as error:  # importing an old package may raise anything
            said = " ".join(str(error).split())
            raise SystemExit(
                f"This benchmark compares with {peer.name}, and `import {peer.module}` raised {type(error).__name__} "
                f"({said}). Install it: {peer.install} (benchmarks/README.md lists what else it needs). The option "
                "--without leaves out optional peers."
            ) from error


def machine(*packages: str) -> dict[str, Any]:
    """Return the processor, CPUs, threads and versions that the figures were measured with."""
    import torch

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "load_average_1min": os.getloadavg()[0],
        "gpu": gpu,
        "versions": found,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_resident_bytes(work: Callable[[], object]) -> int:
    """Return the growth of the resident set while `work` runs, sampled every 2 ms (Linux).

    Allocators return little memory, so the growth is complete only in a process that has not done the work before.
    """
    seen, over = [_resident_bytes()], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(_resident_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return max(seen) - seen[0]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


Figure = float | Mapping[str, float | str]


def publish(
    figures: Mapping[str, Figure],
    *,
    meaning: Mapping[str, str],
    around: Mapping[str, Any],
    times: Times,
    path: Path | None,
    smoke: bool,
) -> None:
    """Print the figures with their meanings; write them, the times and the machine to `path` if given.

    Figures that are mappings become the columns of one table, with their keys as rows.
    """
    columns = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    print()
    _print_columns(columns)
    for name in columns:
        print(f"{name:36s} {'(column)':>12s}   {meaning[name]}")
    for name, value in figures.items():
        if not isinstance(value, Mapping):
            print(f"{name:36s} {value:12.4g}   {meaning[name]}")
    print("\n" + ", ".join(f"{key} {value}" for key, value in around.items() if key != "versions"))
    print(", ".join(f"{key} {value}" for key, value in around["versions"].items()))
    if smoke:
        print("Tiny sizes: these figures only show that the benchmark runs; they say nothing about speed.")
    if path is not None:
        content = {**figures, "smoke": smoke, "rounds_s": dict(times.rounds_s), "machine": dict(around)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {path}")


def _print_columns(columns: Mapping[str, Mapping[str, float | str]]) -> None:
    if not columns:
        return
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    print(" " * 20 + "".join(f"  {name:>14s}" for name in columns))
    for row in rows:
        cells = (column.get(row, "") for column in columns.values())
        shown = (cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells)
        print(
            f"{row:20s}"
            + "".join(f"  {cell:>{max(14, len(name))}s}" for name, cell in zip(columns, shown, strict=True))
        )
    print()
