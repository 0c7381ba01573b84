"""Check that a failed start of a local Ray is repeated if that may help, else refused in one paragraph."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from distributed.on_ray import local_ray as local_ray_module
from distributed.on_ray.local_ray import ATTEMPTS, local_ray, warn_of_readable_token
from tasks.errors import ConfigError, WorkerError

TIMED_OUT = Exception("The current node timed out during startup.")  # Ray raises a plain Exception


class FakeRay:
    """A Ray whose starts fail with the given errors in turn and leave a process behind each time."""

    def __init__(self) -> None:
        self.failures, self.given = list[Exception](), list[dict[str, object]]()
        self.left = list[subprocess.Popen[bytes]]()

    def init(self, **options: object) -> None:
        self.given.append(options)
        if self.failures:
            self.left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
            raise self.failures.pop(0)

    def shutdown(self) -> None:
        """Do nothing: like the real one, leave the processes of failed starts running."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(ray, "init", fake.init)
    monkeypatch.setattr(ray, "shutdown", fake.shutdown)
    monkeypatch.setattr(local_ray_module, "WAIT_S", (0.0, 0.0))
    monkeypatch.setattr(local_ray_module, "END_S", 0.1)
    for variable in ("RAY_AUTH_TOKEN", "GLOO_SOCKET_IFNAME", local_ray_module.LOOPBACK):
        monkeypatch.setenv(variable, "of this test")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return fake


def start(options: dict[str, object] | None = None) -> None:
    """Start and stop a Ray."""
    with local_ray(options or {}):
        pass


def test_a_start_that_fails_twice_is_repeated_and_its_processes_are_killed(
    fake: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    fake.failures = [TIMED_OUT, RuntimeError("Failed to start GCS.")]
    start({"runtime_env": {}})
    assert len(fake.given) == 3
    assert all(given["address"] == "local" and "runtime_env" in given for given in fake.given)
    first, second = caplog.messages
    assert "timed out during startup" in first
    assert "Failed to start GCS" in second
    import psutil  # Ray adds it to sys.path

    assert [psutil.pid_exists(child.pid) for child in fake.left] == [False, False]


@pytest.mark.parametrize(
    "error",
    [TIMED_OUT, TimeoutError("no answer"), OSError(errno.EADDRINUSE, "Address already in use")],
    ids=lambda error: type(error).__name__,
)
def test_a_transient_error_is_retried_a_few_times_and_then_reported(
    fake: FakeRay, error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.failures = [error] * (ATTEMPTS + 1)
    with pytest.raises(WorkerError, match=rf"in {ATTEMPTS} attempts .*{re.escape(str(error))}") as refused:
        start()
    assert len(fake.given) == ATTEMPTS
    assert "workers=0" in str(refused.value)
    kept = list(tmp_path.glob("ray-*"))
    assert len(kept) == 1
    assert f"Ray's logs are kept in {kept[0]}" in caplog.text


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), OSError("AF_UNIX path too long"), ValueError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_permanent_error_is_reported_at_once(fake: FakeRay, error: Exception) -> None:
    fake.failures = [error]
    with pytest.raises(WorkerError, match=r"on this machine \(.*RAY_TMPDIR"):
        start()
    assert len(fake.given) == 1


def test_a_missing_folder_for_rays_files_is_reported(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/absent/folder")
    with pytest.raises(WorkerError, match=r"No such file.*/absent/folder.*RAY_TMPDIR"):
        start()
    assert not fake.given


def test_a_full_disk_is_reported_before_ray_waits_for_its_files(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ray_module, "LEAST_BYTES", 1 << 62)
    with pytest.raises(WorkerError, match=r"No space left on device, .* bytes are free"):
        start()
    assert not fake.given


def test_rays_files_are_for_this_user_alone_and_removed_at_the_end(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", ".")
    with local_ray({}):
        folder = Path(str(fake.given[0]["_temp_dir"]))
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError), local_ray({}):
        raise ConfigError("the command's own refusal")
    assert not list(tmp_path.iterdir())


def test_a_local_ray_has_a_token_of_its_own_unless_the_environment_has_one(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    assert len(fake.given) == 1
    assert os.environ["RAY_AUTH_TOKEN"] == "of this test"
    assert os.environ[local_ray_module.LOOPBACK] == "0"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    start()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_token_that_others_can_read_is_warned_of(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    warn_of_readable_token()
    assert not caplog.messages
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("secret", encoding="utf-8")
    token.chmod(mode)
    warn_of_readable_token()
    assert caplog.text.count(f"chmod 600 {token}") == (mode == 0o644)
    assert "secret" not in caplog.text
