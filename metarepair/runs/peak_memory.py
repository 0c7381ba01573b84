"""Measure the peak memory of this process during a piece of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The measured peak; `bytes` is None if neither the kernel nor CUDA reports it."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """The peak inside the block: of the device's allocator on CUDA, otherwise of resident memory (Linux)."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = int(torch.cuda.max_memory_allocated(device))
        return
    was_reset = _reset_peak()
    yield peak
    peak.bytes = _read_peak() if was_reset else None


def _reset_peak() -> bool:
    """Reset the kernel's peak of this process to its current memory. Return whether the kernel allowed it."""
    try:
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _read_peak() -> int | None:
    try:
        lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
