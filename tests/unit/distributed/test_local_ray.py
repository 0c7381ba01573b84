"""Check that a failed start of a local Ray is repeated if that may help, else refused in one paragraph."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
import ray

from distributed.on_ray import local_ray
from distributed.on_ray.local_ray import ATTEMPTS, start_local_ray
from tasks.errors import UserError

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
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(ray, "init", fake.init)
    monkeypatch.setattr(ray, "shutdown", fake.shutdown)
    monkeypatch.setattr(local_ray, "WAIT_S", (0.0, 0.0))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this test")
    return fake


def test_a_start_that_fails_twice_is_repeated_and_its_processes_are_killed(
    fake: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    fake.failures = [TIMED_OUT, RuntimeError("Failed to start GCS.")]
    start_local_ray({"runtime_env": {}})
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
def test_a_transient_error_is_retried_a_few_times_and_then_reported(fake: FakeRay, error: Exception) -> None:
    fake.failures = [error] * (ATTEMPTS + 1)
    with pytest.raises(UserError, match=rf"in {ATTEMPTS} attempts .*{re.escape(str(error))}") as refused:
        start_local_ray({})
    assert len(fake.given) == ATTEMPTS
    assert "workers=0" in str(refused.value)


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), OSError("AF_UNIX path too long"), ValueError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_permanent_error_is_reported_at_once(fake: FakeRay, error: Exception) -> None:
    fake.failures = [error]
    with pytest.raises(UserError, match=r"on this machine \(.*RAY_TMPDIR"):
        start_local_ray({})
    assert len(fake.given) == 1


def test_a_local_ray_has_a_token_of_its_own_unless_the_environment_has_one(
    fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_local_ray({})
    assert local_ray.os.environ["RAY_AUTH_TOKEN"] == "of this test"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start_local_ray({})
    assert "RAY_AUTH_TOKEN" not in local_ray.os.environ
    monkeypatch.delenv("RAY_AUTH_MODE")
    start_local_ray({})
    assert len(local_ray.os.environ["RAY_AUTH_TOKEN"]) == 64
