"""Check that one driver at a time writes to a run, and that dead owners and lost locks are detected."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError, LockError, StorageError
from tasks.storage import run_lock
from tasks.storage.lease import LEASE, Owner, new_owner, read_lease, renew_lease
from tasks.storage.paths import Place, write_text
from tasks.storage.run_lock import LOCK, holder, locked
from waiting import LIMIT_S, wait_until

QUICK = {"beat_s": 0.1, "dead_s": 0.4}
PATIENT = {"beat_s": 0.4, "dead_s": 60.0}  # a slow machine must not count as a dead owner


def owner_elsewhere(age_s: float = 0.0, **changes: Any) -> Owner:
    beat = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    return replace(new_owner("mine"), host="elsewhere", machine="elsewhere", beat=beat, **changes)


def write_lease(root: Place, owner: Owner) -> None:
    if isinstance(root, Path):
        root.mkdir(exist_ok=True)
    write_text(root / LEASE, json.dumps(asdict(owner)))


@contextmanager
def beating(root: Place, owner: Owner, *, clock_s: float = 0.0) -> Iterator[None]:
    """Renew the lease of a live owner on another machine whose clock is `clock_s` seconds behind."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            moment = datetime.now(UTC) - timedelta(seconds=clock_s)
            write_lease(root, replace(owner, beat=moment.isoformat()))

    write_lease(root, owner)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_second_driver_is_refused_with_the_name_of_the_owner(root: Place) -> None:
    with locked(root, "train", **QUICK):
        before = read_lease(root)
        with pytest.raises(LockError) as refused, locked(root, "run", **PATIENT):
            raise AssertionError("two are in")
        after = read_lease(root)
        assert before is not None
        assert after is not None
        assert after.token == before.token
        words = f"`metarepair train` (process {os.getpid()} on host {before.host}, since {before.since[:10]} "
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert (held := holder(root)) is not None
        assert held.alive
        assert held.owner is not None
        assert held.owner.token == before.token
    assert holder(root) is None
    with locked(root, "run", **QUICK):
        pass
    assert not (root / LEASE).exists()
    assert not (root / LOCK).exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_is_released_on_any_exception(root: Place, error: type[BaseException]) -> None:
    with pytest.raises(error, match="the work's"), locked(root, "mine", **QUICK):
        raise error("the work's")
    assert holder(root) is None
    assert not (root / LEASE).exists()


def test_the_owner_renews_its_lease(root: Place) -> None:
    with locked(root, "mine", beat_s=0.05):
        before = read_lease(root)
        wait_until(lambda: read_lease(root) != before, "another beat of the lease", every_s=0.02)
        after = read_lease(root)
    assert before is not None
    assert after == replace(before, beat=after.beat if after else "")


def test_of_two_concurrent_drivers_one_gets_the_lock(root: Place) -> None:
    start, over = threading.Barrier(2), threading.Event()
    found: list[str] = []

    def work() -> None:
        start.wait()
        try:
            with locked(root, "mine", **PATIENT):
                found.append("in")
                over.wait(LIMIT_S)
        except LockError:
            found.append("refused")
            over.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert sorted(found) == ["in", "refused"]


CHILD = """
import sys, time
from tasks.storage.run_lock import locked
from tasks.storage.paths import place
with locked(place(sys.argv[1]), "mine", beat_s=0.2):
    print("in", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_local_owner_is_taken_over_at_once(
    root: Place, caplog: pytest.LogCaptureFixture
) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        assert (held := holder(root)) is not None
        assert held.alive
        assert held.owner is not None
        assert held.owner.pid == child.pid
        with pytest.raises(LockError), locked(root, "run", **PATIENT):
            raise AssertionError("two are in")
    finally:
        child.kill()
        child.communicate()
    assert (held := holder(root)) is not None
    assert not held.alive
    caplog.clear()
    with locked(root, "run"):
        assert (held := holder(root)) is not None
        assert held.alive
    assert caplog.messages == [], "it is known at once, and not watched"


def refuse_flock(*_: Any) -> None:
    raise OSError(errno.ENOTSUP, "no locks here")


def test_without_flock_the_lease_alone_is_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_flock)
    with locked(tmp_path, "mine", **QUICK):
        assert not (tmp_path / LOCK).exists()
        assert (held := holder(tmp_path)) is not None
        assert held.alive
        with pytest.raises(LockError), locked(tmp_path, "run", **PATIENT):
            raise AssertionError("two are in")
    assert holder(tmp_path) is None
    write_lease(tmp_path, replace(new_owner("mine"), pid=gone_process()))
    assert (held := holder(tmp_path)) is not None
    assert not held.alive
    with locked(tmp_path, "run"):
        assert (held := holder(tmp_path)) is not None
        assert held.alive


def gone_process() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("clock_s", [0.0, 3600.0, -3600.0, 86_400.0, -86_400.0])
def test_a_remote_owner_that_renews_its_lease_is_alive_whatever_its_clock_says(
    root: Place, clock_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A lock of another machine may be invisible here, so a free lock does not suffice, even on a local path."""
    owner = owner_elsewhere(clock_s)
    with (
        beating(root, owner, clock_s=clock_s),
        pytest.raises(LockError, match="on host elsewhere"),
        locked(root, "run", beat_s=2.0, dead_s=60.0),
    ):
        raise AssertionError("two are in")
    (line,) = caplog.messages
    assert "on host elsewhere" in line
    assert (left := read_lease(root)) is not None
    assert left.token == owner.token


def test_the_lock_of_a_silent_remote_owner_is_taken_over(root: Place) -> None:
    write_lease(root, owner_elsewhere(age_s=3600))
    assert (held := holder(root)) is not None
    assert not held.alive
    started = time.monotonic()
    with locked(root, "run", beat_s=0.1, dead_s=60.0):
        assert (now := read_lease(root)) is not None
        assert now.pid == os.getpid()
    assert time.monotonic() - started > 0.15, "it was watched for a beat and a half: its clock may be wrong"
    write_lease(root, owner_elsewhere())
    assert (held := holder(root)) is not None
    assert held.alive
    with locked(root, "run", **QUICK):
        assert (now := read_lease(root)) is not None
        assert now.pid == os.getpid()


def test_the_lock_is_taken_over_if_the_owner_ends_while_it_is_watched(root: Place) -> None:
    write_lease(root, owner_elsewhere())
    ender = threading.Timer(0.2, lambda: (root / LEASE).unlink())
    ender.start()
    with locked(root, "run", beat_s=0.2, dead_s=60.0):
        assert (now := read_lease(root)) is not None
        assert now.pid == os.getpid()
    ender.join()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore the default SIGINT handler: with tests in several processes, the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["taken over", "deleted"])
def test_a_driver_that_lost_its_lock_is_interrupted_and_leaves_the_lease_alone(
    interruptible: None, root: Place, how: str
) -> None:
    other = owner_elsewhere()

    def lose() -> None:
        if how == "deleted":
            (root / LEASE).unlink()
        else:
            write_lease(root, other)
        time.sleep(60)  # interrupted as by Ctrl-C, even inside a blocking call

    started = time.monotonic()
    with pytest.raises(LockError) as error, locked(root, "train", **QUICK):
        lose()
    assert time.monotonic() - started < 60
    assert isinstance(error.value.__cause__, KeyboardInterrupt)
    assert ("on host elsewhere" if how == "taken over" else "was deleted") in str(error.value)
    assert read_lease(root) == (other if how == "taken over" else None)


def test_a_lost_lock_is_reported_at_the_end_if_not_before(root: Place) -> None:
    """Work in a thread cannot be interrupted, so the loss is reported at the end."""
    errors: list[LockError] = []

    def work() -> None:
        try:
            with locked(root, "train"):
                write_lease(root, owner_elsewhere())
        except LockError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_temporary_failure_of_the_storage_does_not_lose_the_lock(
    root: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def renew(root: Place, owner: Owner) -> bool:
        calls.append(len(calls) < 2)
        if calls[-1]:
            raise StorageError("out of reach") if len(calls) == 1 else OSError(errno.ENOSPC, "full")
        return renew_lease(root, owner)

    monkeypatch.setattr(run_lock, "renew_lease", renew)
    with locked(root, "train", beat_s=0.05):
        before = read_lease(root)
        wait_until(lambda: read_lease(root) != before, "another beat of the lease", every_s=0.02)
    assert calls[:3] == [True, True, False]


@pytest.mark.parametrize("content", [b"", b"null", b"\xff"])
def test_a_damaged_lease_names_no_owner_and_is_rewritten(root: Place, content: bytes) -> None:
    write_text(root / LEASE, "")
    (root / LEASE).write_bytes(content)
    assert holder(root) is None
    with locked(root, "run", **QUICK):
        (root / LEASE).write_bytes(content)

        def owner() -> Owner | None:
            held = holder(root)
            return None if held is None else held.owner

        assert wait_until(owner, "a lease that names its owner", every_s=0.02).pid == os.getpid()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_in_place_of_a_lease_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / LEASE
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert holder(tmp_path) is None
    with pytest.raises(DataError, match="cannot be written"), locked(tmp_path, "run", **QUICK):
        pass
    assert not path.is_file()


@pytest.mark.parametrize(
    "changes", [{"pid": 0}, {"pid": "7"}, {"since": "yesterday"}, {"beat": "2026-01-01T00:00:00"}]
)
def test_a_lease_with_invalid_values_is_damaged(root: Place, changes: dict[str, Any]) -> None:
    write_text(root / LEASE, json.dumps(asdict(new_owner("run")) | changes))
    with pytest.raises(ValueError, match=r"."):
        read_lease(root)


def test_asking_for_the_owner_changes_nothing_and_blocks_no_driver(tmp_path: Path) -> None:
    with locked(tmp_path, "run"):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert holder(tmp_path) is not None
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    descriptor = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    looking = threading.Timer(0.15, lambda: os.close(descriptor))
    looking.start()
    with locked(tmp_path, "run"):
        pass
    looking.join()


def test_a_lock_file_deleted_by_its_last_owner_is_not_used(tmp_path: Path) -> None:
    """A driver that opened the file before its owner deleted it would hold a lock that no other driver can see."""
    first, opened = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT), []
    fcntl.flock(first, fcntl.LOCK_EX)
    real = os.open

    def opening(path: Any, *rest: Any) -> int:
        descriptor = real(path, *rest)
        if not opened:
            opened.append(path)
            (tmp_path / LOCK).unlink()
            os.close(first)
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opening)
        with locked(tmp_path, "run"):
            patch.undo()
            assert opened
            with pytest.raises(LockError), locked(tmp_path, "mine"):
                raise AssertionError("two are in")
