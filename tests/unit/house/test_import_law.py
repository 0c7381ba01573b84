"""Who may import whom: tasks <- metarepair <- distributed, and Ray in `distributed` alone."""

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


def iter_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every import of a file: its top package, and whether it is inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} imports relatively"
                yield str(child.module).split(".")[0], inside
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def importers(package: str, imported: str) -> dict[str, list[bool]]:
    """Files of `package` that import `imported`, with whether each import is inside a function."""
    folder, found = FOLDERS[package], {}
    for path in sorted(folder.rglob("*.py")):
        inside = [where for name, where in iter_imports(path) if name == imported]
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


def test_the_law_sees_imports() -> None:
    assert "pipeline.py" in importers("distributed", "metarepair")
    assert "config/run.py" in importers("metarepair", "tasks")


@pytest.mark.parametrize("imported", ["metarepair", "distributed", "ray"])
def test_tasks_import_no_other_package_of_ours_and_no_ray(imported: str) -> None:
    assert importers("tasks", imported) == {}


def test_only_the_command_line_reaches_distributed_and_only_inside_functions() -> None:
    found = importers("metarepair", "distributed")
    assert list(found) == ["cli.py"]
    assert all(found["cli.py"])


def test_ray_is_imported_in_distributed_alone() -> None:
    assert importers("metarepair", "ray") == {}
    assert importers("distributed", "ray")


def test_help_needs_neither_torch_nor_ray() -> None:
    code = "from metarepair.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    modules = modules_after(code)
    assert "metarepair" in modules
    assert not {"torch", "ray", "timm", "pyarrow"} & modules


@pytest.mark.slow
def test_the_pipeline_without_workers_needs_no_ray() -> None:
    modules = modules_after("import distributed.pipeline")
    assert "torch" in modules
    assert "ray" not in modules
