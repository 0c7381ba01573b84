"""Find the settings and the photographs that the package ships, `shipped:NAME`; `metarepair.weights` has the weights.

In a checkout, `tune_configs` and `examples` in this folder are links to its top-level folders; in an installed package
they are folders.
"""

from __future__ import annotations

from pathlib import Path

import tasks
from metarepair.weights import shipped_file

CONFIGS = Path(__file__).parent / "tune_configs"
SAMPLE = Path(tasks.__file__).parent / "sample"


def shipped_config(path: str | Path) -> Path:
    """Return the YAML file that `--config` names: `shipped:NAME` is one of this package, anything else is a path.

    Raises ConfigError, with near names, if there is no such file in the package.
    """
    return shipped_file("--config ", str(path), CONFIGS.glob("*.yaml")) or Path(path)


def shipped_photographs(images: str) -> str:
    """Return the path of the photographs that `images` names: `shipped:NAME` are some of this package.

    Raises ConfigError, with near names, if there are no such photographs in the package.
    """
    return str(shipped_file("images ", images, SAMPLE.glob("*.parquet")) or images)
