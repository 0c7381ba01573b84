"""Write packages with corruption plugins as pip installs them, and put them on the path for one test."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.corruptions import plugins

EXAMPLE = Path(__file__).parents[2] / "examples" / "corruptions_cbar"
# A corruption that adds uniform noise of c0 grey levels, drawn image by image.
CODE = """
import numpy as np
from tasks.corruptions import CorruptionPlugin

def grains(images, dose):
    (strength,) = dose.constants
    drawn = np.stack([rng.random(images.shape[1:], dtype=np.float32) for rng in dose.rngs])
    return images + np.float32(strength) * (drawn - np.float32(0.5))

OWN = CorruptionPlugin(
    name="grains", category="noise", constants=[(10,), (20,), (40,), (60,), (80,)], apply=grains
)
"""


def forget_plugins() -> None:
    """Clear what was found on the path before."""
    plugins._points.cache_clear()
    plugins.find_plugin.cache_clear()


@contextmanager
def plugin_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the path, the modules and the plugins after the block."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    forget_plugins()
    yield
    monkeypatch.undo()
    forget_plugins()


def install(
    folder: Path,
    *,
    code: str = CODE,
    entries: Mapping[str, str] | None = None,
    distribution: str = "grain-kit",
    version: str | None = "1.0",
) -> None:
    """Write a package of one module, and put its folder first on the path.

    entries: names of corruptions with the names of objects in the module; by default `{"grains": "OWN"}`.
    """
    module = distribution.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    points = {
        name: f"{module}:{found}"
        for name, found in ({"grains": "OWN"} if entries is None else entries).items()
    }
    write_record(folder, points, distribution=distribution, version=version)
    sys.path.insert(0, str(folder))
    sys.modules.pop(module, None)
    forget_plugins()


def install_example(folder: Path) -> None:
    """Install the example package: its record in `folder`, its module where it is."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["metarepair.corruptions"]
    write_record(folder, points, distribution=project["name"], version=project["version"])
    sys.path[:0] = [str(folder), str(EXAMPLE)]
    forget_plugins()


def write_record(folder: Path, points: Mapping[str, str], *, distribution: str, version: str | None) -> None:
    """Write what pip records of an installed package: its name, version and entry points."""
    info = folder / f"{distribution.replace('-', '_')}-{version or 0}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    numbered = f"Version: {version}\n" if version else ""
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\n{numbered}", encoding="utf-8"
    )
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text(
        "\n".join(["[metarepair.corruptions]", *lines, ""]), encoding="utf-8"
    )
