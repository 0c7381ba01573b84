"""Check the wheel as somebody who installs it uses it: in an environment of its own, outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "tasks", "metarepair", "distributed")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the folder in which its programs run."""

    programs: Path
    folder: Path

    def __call__(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return checked(self.programs / program, *arguments, cwd=self.folder)


def checked(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without the checkout on the path of modules; show its output if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the wheel, which finds what it requires in the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    checked(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    checked(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    checked(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    requirements = [p for p in sys.path if p.endswith("site-packages")]  # .pth files there are not read
    (site / "requirements.pth").write_text("\n".join(requirements), encoding="utf-8")
    work = folder / "elsewhere"
    work.mkdir()
    return Installed(python.parent, work)


@pytest.mark.slow
def test_the_wheel_has_all_that_the_package_ships(installed: Installed) -> None:
    code = """
import metarepair, tasks, distributed, sys
from pathlib import Path
from metarepair.config.load import load_config
from metarepair.examples.cifar_resnets import resnet20
from metarepair.shipped import CONFIGS
for package in (metarepair, tasks, distributed):
    folder = Path(package.__file__).parent
    assert Path(sys.prefix) in folder.parents, folder
    assert (folder / "py.typed").is_file()
names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
print(*[load_config(f"shipped:{name}").name for name in names], len(list(resnet20().parameters())))
"""
    *names, parameters = installed("python", "-c", code).stdout.split()
    assert len(names) == len(list((ROOT / "tune_configs").glob("*.yaml")))
    assert int(parameters) > 0


@pytest.mark.soak
def test_the_wheel_repairs_the_shipped_photographs(installed: Installed) -> None:
    photographs = ("--images", "shipped:photographs", "--holdout", "shipped:photographs_later")
    done = installed(
        "metarepair", "fix", "--kit", "shipped:resnet8_cifar10", *photographs, "--keep-ok", "--out", "fixed"
    )
    assert "before repair" in done.stdout
    fixed = installed.folder / "fixed"
    assert (fixed / "report" / "index.html").is_file()
    assert (fixed / "repaired.safetensors").is_file() or "keep your model" in done.stdout.lower()
