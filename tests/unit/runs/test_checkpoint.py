"""Test checkpoints: incomplete ones are skipped, old ones deleted, writing is asynchronous, errors give a remedy."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metarepair.models.build import save_weights
from metarepair.runs import checkpoint
from metarepair.runs.checkpoint import Checkpoints, newest_checkpoint, read_state, write_state
from tasks.errors import StorageError
from tasks.storage.paths import Place, find
from waiting import LIMIT_S


def filled(episode: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        save_weights(folder / "model.safetensors", {"w": torch.full((100,), float(episode))}, {})
        write_state(folder, {"episode": episode})

    return fill


def written(root: Place, episodes: list[int], kept: int | None = 2) -> list[str]:
    checkpoints = Checkpoints(root / "checkpoints", kept=kept)
    for episode in episodes:
        checkpoints.write(episode, filled(episode))
    checkpoints.finish()
    return [path.name for path in find(root / "checkpoints", "*")]


def test_the_newest_few_are_kept(root: Place) -> None:
    assert written(root, [10, 20, 30]) == ["checkpoint-000020", "checkpoint-000030"]
    assert newest_checkpoint(root) == root / "checkpoints" / "checkpoint-000030"


def test_no_checkpoint_is_deleted_if_all_are_kept(tmp_path: Path) -> None:
    assert len(written(tmp_path, [1, 2, 3, 4], kept=None)) == 4


@pytest.mark.parametrize("broken", ["model.safetensors", "state.json"])
def test_a_checkpoint_with_a_flipped_byte_is_reported_and_the_previous_one_is_used(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, [10, 20])
    path = tmp_path / "checkpoints" / "checkpoint-000020" / broken
    content = bytearray(path.read_bytes())
    content[-20 if broken == "model.safetensors" else 0] ^= 1
    path.write_bytes(content)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-000010"
    (line,) = caplog.messages
    assert "checkpoint-000020 is damaged" in line
    assert broken in line


def test_a_half_written_checkpoint_is_skipped_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, [10, 20])
    (tmp_path / "checkpoints" / "checkpoint-000020" / "state.json").unlink()  # this file is written last
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-000010"
    assert not caplog.messages


def test_training_continues_while_a_checkpoint_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, publish = threading.Event(), checkpoint.publish

    def slowly(folder: Path, final: Place) -> None:
        assert may_go_on.wait(LIMIT_S)
        publish(folder, final)

    monkeypatch.setattr(checkpoint, "publish", slowly)
    checkpoints, after = Checkpoints(tmp_path / "checkpoints"), list[bool]()
    state = filled(1)
    checkpoints.write(1, state, then=lambda: after.append(newest_checkpoint(tmp_path) is not None))
    assert newest_checkpoint(tmp_path) is None
    assert not after
    may_go_on.set()
    checkpoints.finish()
    assert after == [True]  # `then` runs once the checkpoint is published
    assert read_state(tmp_path / "checkpoints" / "checkpoint-000001") is not None


def test_a_full_disk_raises_an_error_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.write(10, filled(10))
    checkpoints._wait()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "publish", full)
    checkpoints.write(20, filled(20))
    with pytest.raises(
        StorageError, match=r"checkpoint of episode 20 .*No space left.*run the same command again"
    ):
        checkpoints.write(30, filled(30))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-000010"


def test_a_checkpoint_that_cannot_be_written_raises_at_once(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="episode 5 cannot be written"):
        Checkpoints(tmp_path).write(5, full)
