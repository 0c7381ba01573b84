"""Check that our packages are imported in spite of user modules of the same names, and that other clashes are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed.on_ray.own_packages import hidden_by, import_ours_first, worker_options
from metarepair.own_packages import FOLDER, NAMES

OF_USER = "raise RuntimeError('this is the file of the user')"


def write_module(folder: Path, name: str, *, package: bool) -> Path:
    file = folder / name / "__init__.py" if package else folder / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(OF_USER, encoding="utf-8")
    return file


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_user_module_that_hides_a_package_of_ours_is_detected(
    name: str, package: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_module(tmp_path, name, package=package)
    assert hidden_by([str(tmp_path), str(FOLDER)]) == {name: str(file)}
    assert hidden_by([str(FOLDER), str(tmp_path)]) == {}
    assert worker_options(str(tmp_path), [str(FOLDER)]).keys() == {"runtime_env"}
    (line,) = caplog.messages
    assert str(file) in line


def test_a_folder_that_is_not_a_package_hides_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tasks").mkdir()
    assert worker_options(str(tmp_path), [str(FOLDER)]) == {}
    assert caplog.messages == []


def python(code: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process whose sys.path has `path` first and our packages after it."""
    start = f"import sys; sys.path[:0] = [{str(path)!r}, {str(FOLDER)!r}]\n{code}"
    return subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, cwd=cwd)


def test_the_worker_hook_imports_our_packages_and_not_the_modules_of_the_user(tmp_path: Path) -> None:
    for name in NAMES:
        write_module(tmp_path, name, package=False)
    hook = import_ours_first()
    before = {name: sys.modules[name] for name in NAMES}
    try:
        for name in NAMES:
            del sys.modules[name]
        sys.path.insert(0, str(tmp_path))
        hook()
        assert all(Path(str(sys.modules[name].__file__)).parent == FOLDER / name for name in NAMES)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.update(before)


def test_the_command_starts_beside_files_of_these_names(tmp_path: Path) -> None:
    for name in ("tasks", "distributed"):
        write_module(tmp_path, name, package=name == "distributed")
    done = python(
        "from metarepair.cli import main; sys.exit(main(['corruptions', '--list']))", tmp_path, tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "gaussian_noise" in done.stdout


def test_a_user_module_that_was_imported_before_ours_is_named(tmp_path: Path) -> None:
    for name in ("tasks", "distributed"):
        (tmp_path / f"{name}.py").write_text("", encoding="utf-8")
    done = python(
        "import distributed; from metarepair.cli import main; sys.exit(main(['doctor']))", tmp_path, tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("metarepair: MetaRepair's package 'distributed' is hidden")
    assert str(tmp_path / "distributed.py") in done.stderr
    assert done.stderr.count("\n") == 1
    done = python("import tasks, metarepair", tmp_path, tmp_path)
    assert "ImportError: MetaRepair's package 'tasks' is hidden" in done.stderr
    assert str(tmp_path / "tasks.py") in done.stderr
