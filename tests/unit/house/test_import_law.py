"""Check the import law: a room imports only the rows below it, and only `distributed` imports Ray."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distributed
import metarepair
import tasks

FOLDERS = {
    package.__name__: Path(str(package.__file__)).parent for package in (tasks, metarepair, distributed)
}

# The house from its roof to its ground. A room may import itself and the rows below it. Imports inside functions and
# for types count, too. The name of a package stands for its __init__.py.
ROWS = """
metarepair.__main__
metarepair.cli
distributed.search
distributed.stages
distributed.on_ray
distributed
metarepair
metarepair.repair_kit
metarepair.stages
metarepair.console
metarepair.inspection
metarepair.fixing
metarepair.compare metarepair.search
metarepair.repairs
metarepair.probing
metarepair.diagnosis
metarepair.reports
metarepair.evaluation
metarepair.methods
metarepair.pretraining
metarepair.meta_training
metarepair.adaptation
metarepair.features
metarepair.kit
metarepair.data
metarepair.models
metarepair.trackers
metarepair.runs
metarepair.config
metarepair.engine
metarepair.shipped
metarepair.own_packages metarepair.weights
tasks.sampling
tasks.experiences
tasks.environments
tasks.datasets
tasks.splits
tasks.corruptions
tasks.distances
tasks.storage
tasks
tasks.records tasks.keys
tasks.errors
"""
ROW = {room: number for number, row in enumerate(ROWS.split("\n")) for room in row.split()}


def modules() -> dict[str, Path]:
    """The files of all modules in the three packages, by dotted name."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = (name, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    """The room that a module belongs to."""
    return ".".join(module.split(".")[:2])


def iter_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each import of a file: the module, and whether the import is inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} imports relatively"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield whole if whole in MODULES else str(child.module), inside
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


IMPORTS = {
    name: {found for found, _ in iter_imports(path) if found in MODULES} - {name}
    for name, path in MODULES.items()
}


def importers(package: str, imported: str) -> dict[str, list[bool]]:
    """The files of `package` that import `imported`; for each import, whether it is inside a function."""
    folder, found = FOLDERS[package], {}
    for path in sorted(folder.rglob("*.py")):
        inside = [where for name, where in iter_imports(path) if name.split(".")[0] == imported]
        if inside:
            found[path.relative_to(folder).as_posix()] = inside
    return found


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def modules_after(code: str) -> set[str]:
    done = python("-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_imports_are_detected() -> None:
    assert "stages/executor.py" in importers("distributed", "metarepair")
    assert "config/run.py" in importers("metarepair", "tasks")
    assert "metarepair.engine.inner" in IMPORTS["metarepair.engine.meta_gradient"]
    assert "metarepair.config.run" in IMPORTS["metarepair.cli"], "an import for types alone counts, too"


def test_every_module_is_in_a_room_and_every_room_has_a_module() -> None:
    assert {room_of(module) for module in MODULES} == set(ROW)


@pytest.mark.parametrize("room", sorted(ROW))
def test_a_room_imports_only_the_rows_below_it(room: str) -> None:
    upward = [
        f"{module} imports {imported}"
        for module, found in IMPORTS.items()
        for imported in sorted(found)
        if room_of(module) == room != room_of(imported) and ROW[room] >= ROW[room_of(imported)]
    ]
    assert upward == []


def test_there_are_no_circular_imports() -> None:
    left = {module: set(found) for module, found in IMPORTS.items()}
    while ends := {module for module, found in left.items() if not found & left.keys()}:
        left = {module: found for module, found in left.items() if module not in ends}
    assert sorted(left) == []


def test_only_the_command_line_imports_distributed_and_only_inside_functions() -> None:
    found = importers("metarepair", "distributed")
    assert list(found) == ["cli.py"]
    assert all(found["cli.py"])


def test_only_distributed_imports_ray() -> None:
    assert importers("tasks", "ray") == {}
    assert importers("metarepair", "ray") == {}
    assert importers("distributed", "ray")


def test_help_needs_neither_torch_nor_ray() -> None:
    code = "from metarepair.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    modules = modules_after(code)
    assert "metarepair" in modules
    assert not {"torch", "ray", "timm", "pyarrow"} & modules


@pytest.mark.slow
def test_the_pipeline_in_one_process_needs_neither_ray_nor_distributed() -> None:
    modules = modules_after("import metarepair.stages.pipeline")
    assert "torch" in modules
    assert not {"ray", "distributed"} & modules
