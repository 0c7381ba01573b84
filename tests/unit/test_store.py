"""The store gives back what it was given, and notices what it was not; a manifest is a promise that is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import DataError, StageError
from tasks.manifest import (
    Manifest,
    begin,
    check_done,
    discard,
    read_manifest,
    require_manifest,
    verify_checksums,
    write_manifest,
)
from tasks.mining import Mined
from tasks.records import Failures
from tasks.store import (
    finish_environment,
    open_side,
    read_failures,
    read_part,
    write_failures,
    write_part,
)

SETTINGS = {"seed": 0, "mining": {"collect": 20, "severities": (3, 5)}}
INPUTS = {"train": "abc"}


def failures(count: int, seed: int = 0) -> Failures:
    generator = np.random.default_rng(seed)
    return Failures(
        corruption="fog",
        image_ids_N=generator.integers(0, 2**40, count),
        severities_N=generator.integers(1, 6, count),
        labels_N=generator.integers(0, 10, count),
        predicted_N=generator.integers(0, 10, count),
        images_NHWC_u8=generator.integers(0, 256, (count, 8, 6, 3), dtype=np.uint8),
    )


def assert_same(a: Failures, b: Failures) -> None:
    assert a.corruption == b.corruption
    for column in ("image_ids_N", "severities_N", "labels_N", "predicted_N", "images_NHWC_u8"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column))


def mined(count: int, seed: int) -> Mined:
    seconds = {"corrupt": 0.25, "classify": float(seed)}
    return Mined(
        failures=failures(count, seed), examined={3: 10, 5: 10}, correct={3: 9, 5: seed}, seconds=seconds
    )


def odd_and_even(found: Failures) -> np.ndarray:
    return (np.arange(len(found)) % 3).astype(np.int8)


def finish(folder: Path, parts: Sequence[Path], num_classes: int = 10) -> Manifest:
    return finish_environment(
        folder, parts, odd_and_even, stage="mine fog", config=SETTINGS, inputs=INPUTS, num_classes=num_classes
    )


def made(folder: Path) -> Manifest:
    """A finished stage of two files."""
    folder.mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"0123456789")
    (folder / "b.bin").write_bytes(b"x" * 100)
    return write_manifest(folder, stage="s", config=SETTINGS, inputs=INPUTS, files=["b.bin", "a.bin"])


def check(folder: Path, config: Any = SETTINGS, inputs: Any = INPUTS) -> Manifest | None:
    return check_done(folder, stage="s", config=config, inputs=inputs)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_failures_come_back_as_they_were_written(tmp_path: Path, count: int) -> None:
    write_failures(tmp_path / "a.arrow", failures(count))
    assert_same(read_failures(tmp_path / "a.arrow"), failures(count))
    assert [p.name for p in tmp_path.iterdir()] == ["a.arrow"]


def test_pixels_are_read_through_a_memory_map_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_failures(path, failures(5))
    images = read_failures(path).images_NHWC_u8
    assert not images.flags.writeable
    assert not images.flags.owndata
    content = bytearray(path.read_bytes())
    place = content.index(images[2].tobytes())
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([images[2, 0, 0, 0] ^ 0xFF]))
    assert images[2, 0, 0, 0] == failures(5).images_NHWC_u8[2, 0, 0, 0] ^ 0xFF, (
        "a copy would not see the change"
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "collect.arrow"
    write_failures(path, failures(20))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"collect\.arrow is missing, truncated.*--restart"):
        read_failures(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.arrow is missing"):
        read_failures(tmp_path / "absent.arrow")


def test_a_part_keeps_its_counts(tmp_path: Path) -> None:
    write_part(tmp_path / "p.arrow", mined(4, 7))
    part = read_part(tmp_path / "p.arrow")
    assert (part.examined, part.correct) == ({3: 10, 5: 10}, {3: 9, 5: 7})
    assert_same(part.failures, failures(4, 7))


def test_parts_are_joined_in_shard_order_whatever_the_order_of_writing(tmp_path: Path) -> None:
    stores = []
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        folder = tmp_path / name
        paths = [folder / "parts" / f"part-{i}.arrow" for i in range(3)]
        for i in order:
            write_part(paths[i], mined(5 + i, i))
        finish(folder, paths)
        stores.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert stores[0] == stores[1]
    assert set(stores[0]) == {"collect.arrow", "fail.arrow", "manifest.json"}


def test_a_finished_environment_holds_each_side_and_counts_all(tmp_path: Path) -> None:
    paths = [tmp_path / "parts" / f"part-{i}.arrow" for i in range(2)]
    for i, path in enumerate(paths):
        write_part(path, mined(10, i))
    manifest = finish(tmp_path, paths)
    whole = [failures(10, 0), failures(10, 1)]
    images = np.concatenate([f.images_NHWC_u8 for f in whole])
    np.testing.assert_array_equal(open_side(tmp_path, "collect", manifest).images_NHWC_u8, images[0::3])
    np.testing.assert_array_equal(open_side(tmp_path, "fail", manifest).images_NHWC_u8, images[1::3])
    assert manifest.rows == {"collect": 7, "fail": 7, "unused": 6}
    assert manifest.facts["examined"] == {"3": 20, "5": 20}
    assert manifest.facts["correct"] == {"3": 18, "5": 1}
    labels = np.concatenate([f.labels_N for f in whole])[0::3]
    assert manifest.facts["collected_per_class"] == np.bincount(labels, minlength=10).tolist()
    assert manifest.facts["classes_without_failures"] == [k for k in range(10) if k not in labels]
    assert read_manifest(tmp_path) == manifest


def test_a_side_with_another_number_of_rows_than_promised_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "parts" / "p.arrow", mined(9, 0))
    manifest = finish(tmp_path, [tmp_path / "parts" / "p.arrow"])
    write_failures(tmp_path / "fail.arrow", failures(2))
    with pytest.raises(DataError, match=r"fail\.arrow has 2 rows, its manifest promises 3"):
        open_side(tmp_path, "fail", manifest)


def test_labels_outside_the_classes_leave_no_finished_environment(tmp_path: Path) -> None:
    write_part(tmp_path / "parts" / "p.arrow", mined(30, 0))
    with pytest.raises(DataError, match="outside the 4 classes"):
        finish(tmp_path, [tmp_path / "parts" / "p.arrow"], num_classes=4)
    assert read_manifest(tmp_path) is None


def test_half_mined_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    begin(tmp_path, config=SETTINGS, inputs={})
    begin(tmp_path, config=SETTINGS, inputs={})  # the same: gone on with
    with pytest.raises(StageError, match=r"begun with other settings: mining\.collect: 20 -> 30"):
        begin(tmp_path, config={"seed": 0, "mining": {"collect": 30, "severities": (3, 5)}}, inputs={})
    assert (
        json.loads((tmp_path / "begun.json").read_text(encoding="utf-8"))["config"]["mining"]["collect"] == 20
    )


def test_a_stage_is_done_once_it_has_a_manifest_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0")
    assert check(tmp_path) is None
    with pytest.raises(StageError, match=r"is not finished.*Do this first"):
        require_manifest(tmp_path, "Do this first.")
    manifest = made(tmp_path)
    assert check(tmp_path) == manifest == require_manifest(tmp_path, "")
    discard(tmp_path)
    assert check(tmp_path) is None
    assert not tmp_path.exists()


def test_changed_settings_and_inputs_are_refused_with_the_difference(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(StageError, match=r"seed: 0 -> 1\. .*--restart"):
        check(tmp_path, config=SETTINGS | {"seed": 1})
    with pytest.raises(StageError, match="gone: None -> 3"):
        check(tmp_path, config=SETTINGS | {"gone": 3})
    with pytest.raises(StageError, match=r"inputs\.train: abc -> xyz"):
        check(tmp_path, inputs={"train": "xyz"})


@pytest.mark.parametrize("content", [b"", b"012345678", b"0123456789+"])
def test_a_file_of_another_size_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    made(tmp_path)
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"a\.bin has {len(content)} bytes, its manifest promises 10.*--restart"
    ):
        check(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin is missing"):
        check(tmp_path)


def test_a_changed_byte_shows_in_the_checksum(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    verify_checksums(tmp_path, manifest)
    (tmp_path / "a.bin").write_bytes(b"0123456_89")
    with pytest.raises(DataError, match=r"a\.bin differs from its checksum"):
        verify_checksums(tmp_path, manifest)


def test_the_digest_changes_with_the_bytes_and_the_settings_and_not_with_versions(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    assert manifest.digest == made(tmp_path).digest
    assert Manifest(**(vars(manifest) | {"versions": {}})).digest == manifest.digest
    assert Manifest(**(vars(manifest) | {"config": {}})).digest != manifest.digest
    (tmp_path / "a.bin").write_bytes(b"0123456_89")
    changed = write_manifest(tmp_path, stage="s", config=SETTINGS, inputs=INPUTS, files=["a.bin", "b.bin"])
    assert changed.digest != manifest.digest


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"files": 3}', '{"files": {}}', '{"files": {"a": [1]}}']
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json is damaged.*--restart"):
        read_manifest(tmp_path)
