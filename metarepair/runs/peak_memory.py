"""A piece of work in, the most memory that this process held meanwhile out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """`bytes` is None where neither the kernel nor CUDA tells."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """The peak inside the block: of the device's allocator on CUDA, else of resident memory (Linux)."""
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = int(torch.cuda.max_memory_allocated(device))
        return
    begun = _begin_anew()
    yield found
    found.bytes = _peak() if begun else None


def _begin_anew() -> bool:
    """Sets the kernel's mark of this process' peak back to what it holds now."""
    try:
        RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    try:
        lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
