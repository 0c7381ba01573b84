"""Check that the store returns what was written and detects other content by its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.errors import DataError, StageError
from tasks.experiences.failure_file import read_failures, write_failures
from tasks.experiences.mining import MinedShard
from tasks.experiences.store import finish_environment, open_side, read_part, write_part
from tasks.records import Failures
from tasks.storage.manifest import (
    Manifest,
    begin,
    check_done,
    check_whole,
    discard,
    read_manifest,
    require_manifest,
    verify_checksums,
    write_manifest,
)
from tasks.storage.paths import Place, find, local, place, write_text

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
        images_NHWC=generator.integers(0, 256, (count, 8, 6, 3), dtype=np.uint8),
    )


def assert_same(a: Failures, b: Failures) -> None:
    assert a.corruption == b.corruption
    for column in ("image_ids_N", "severities_N", "labels_N", "predicted_N", "images_NHWC"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column))


def mined(count: int, seed: int) -> MinedShard:
    seconds = {"corrupt": 0.25, "classify": float(seed)}
    return MinedShard(
        failures=failures(count, seed), examined={3: 10, 5: 10}, correct={3: 9, 5: seed}, seconds=seconds
    )


def odd_and_even(found: Failures) -> np.ndarray:
    return (np.arange(len(found)) % 3).astype(np.int8)


def finish(folder: Place, parts: Sequence[Place], num_classes: int = 10) -> Manifest:
    return finish_environment(
        folder, parts, odd_and_even, stage="mine fog", config=SETTINGS, inputs=INPUTS, num_classes=num_classes
    )


def made(folder: Place) -> Manifest:
    """A finished stage of two files."""
    folder.mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"0123456789")
    (folder / "b.bin").write_bytes(b"x" * 100)
    return write_manifest(folder, stage="s", config=SETTINGS, inputs=INPUTS, files=["b.bin", "a.bin"])


def check(folder: Place, config: Any = SETTINGS, inputs: Any = INPUTS) -> Manifest | None:
    return check_done(folder, stage="s", config=config, inputs=inputs)


@pytest.mark.parametrize("count", [0, 1, 17])
def test_failures_are_read_back_as_written(root: Place, count: int) -> None:
    write_failures(root / "a.arrow", failures(count))
    assert_same(read_failures(root / "a.arrow"), failures(count))
    assert [p.name for p in root.iterdir()] == ["a.arrow"]


def test_pixels_are_read_through_a_read_only_memory_map(root: Place) -> None:
    path = root / "a.arrow"
    write_failures(path, failures(5))
    images = read_failures(path).images_NHWC
    assert not images.flags.writeable
    assert not images.flags.owndata
    content = bytearray(path.read_bytes())
    place = content.index(images[2].tobytes())
    with local(path).open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([images[2, 0, 0, 0] ^ 0xFF]))
    assert images[2, 0, 0, 0] == failures(5).images_NHWC[2, 0, 0, 0] ^ 0xFF, "a copy would not see the change"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_by_name(root: Place, share: float) -> None:
    path = root / "collect.arrow"
    write_failures(path, failures(20))
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])
    with pytest.raises(
        DataError, match=r"collect\.arrow cannot be read as a file of an experience store .*--restart"
    ):
        read_failures(path)


def rewritten(path: Path, **changes: Any) -> None:
    """Write a file of failures anew, with other metadata or columns; None removes a column."""
    with pa.OSFile(str(path)) as stream:
        table = pa.ipc.open_file(stream).read_all()
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    for name, value in changes.items():
        if isinstance(value, str):
            metadata[name] = value
        else:
            table = table.drop_columns([name])
            table = table if value is None else table.append_column(name, [value])
    schema = table.schema.with_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0].cast(schema))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": "8,6"},
        {"image_shape": "100000000000,6,3"},
        {"image_shape": "0,6,3"},
        {"image_shape": "-8,-6,3"},
        {"image_shape": "8,6,4"},
        {"facts": "[" * 100_000},
        {"facts": "[1]"},
        {"pixels": None},
        {"pixels": pa.array(["a"] * 5)},
        {"predicted": pa.array([{"a": {"b": 1}}] * 5)},
        {"pixels": None, "label": pa.array([[1]] * 5)},
    ],
    ids=[
        "two sides",
        "enormous sides",
        "no height",
        "negative sides",
        "another size",
        "deeply nested facts",
        "a list of facts",
        "no pixels",
        "pixels as text",
        "a struct of predictions",
        "a list of labels",
    ],
)
def test_a_file_of_other_columns_or_absurd_metadata_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write_failures(tmp_path / "a.arrow", failures(5))
    rewritten(tmp_path / "a.arrow", **changes)
    with pytest.raises(
        DataError, match=r"a\.arrow cannot be read as a file of an experience store \(.*--restart\.$"
    ):
        read_failures(tmp_path / "a.arrow")


def test_a_file_with_absurd_sizes_of_its_buffers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_failures(path, failures(5))
    content = path.read_bytes()
    size = (5 * 8 * 6 * 3).to_bytes(8, "little")
    assert content.count(size) >= 1
    path.write_bytes(content.replace(size, (10**11).to_bytes(8, "little")))
    with pytest.raises(DataError, match=r"a\.arrow cannot be read as a file of an experience store"):
        read_failures(path)


def test_a_missing_file_is_refused_by_name(root: Place) -> None:
    with pytest.raises(DataError, match=r"absent\.arrow cannot be read .*(does not exist|No such file)"):
        read_failures(root / "absent.arrow")


def test_a_part_keeps_its_counts(root: Place) -> None:
    write_part(root / "p.arrow", mined(4, 7))
    part = read_part(root / "p.arrow")
    assert (part.examined, part.correct) == ({3: 10, 5: 10}, {3: 9, 5: 7})
    assert_same(part.failures, failures(4, 7))


def test_parts_are_joined_in_shard_order_for_any_order_of_writing(root: Place) -> None:
    stores = []
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        folder = root / name
        paths = [folder / "parts" / f"part-{i}.arrow" for i in range(3)]
        for i in order:
            write_part(paths[i], mined(5 + i, i))
        finish(folder, paths)
        stores.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    assert stores[0] == stores[1]
    assert set(stores[0]) == {"collect.arrow", "fail.arrow", "manifest.json"}


def test_a_finished_environment_has_both_sides_and_all_counts(root: Place) -> None:
    paths = [root / "parts" / f"part-{i}.arrow" for i in range(2)]
    for i, path in enumerate(paths):
        write_part(path, mined(10, i))
    manifest = finish(root, paths)
    whole = [failures(10, 0), failures(10, 1)]
    images = np.concatenate([f.images_NHWC for f in whole])
    np.testing.assert_array_equal(open_side(root, "collect", manifest).images_NHWC, images[0::3])
    np.testing.assert_array_equal(open_side(root, "fail", manifest).images_NHWC, images[1::3])
    assert manifest.rows == {"collect": 7, "fail": 7, "unused": 6}
    assert manifest.facts["examined"] == {"3": 20, "5": 20}
    assert manifest.facts["correct"] == {"3": 18, "5": 1}
    labels = np.concatenate([f.labels_N for f in whole])[0::3]
    assert manifest.facts["collected_per_class"] == np.bincount(labels, minlength=10).tolist()
    assert manifest.facts["classes_without_failures"] == [k for k in range(10) if k not in labels]
    assert read_manifest(root) == manifest


def test_a_side_with_another_number_of_rows_than_the_manifest_is_refused(root: Place) -> None:
    write_part(root / "parts" / "p.arrow", mined(9, 0))
    manifest = finish(root, [root / "parts" / "p.arrow"])
    write_failures(root / "fail.arrow", failures(2))
    with pytest.raises(DataError, match=r"fail\.arrow has 2 rows, its manifest promises 3"):
        open_side(root, "fail", manifest)


def test_labels_outside_the_classes_leave_no_finished_environment(root: Place) -> None:
    write_part(root / "parts" / "p.arrow", mined(30, 0))
    with pytest.raises(DataError, match="outside the 4 classes"):
        finish(root, [root / "parts" / "p.arrow"], num_classes=4)
    assert read_manifest(root) is None


def test_unfinished_mining_with_other_settings_is_refused_with_the_difference(root: Place) -> None:
    begin(root, config=SETTINGS, inputs={})
    begin(root, config=SETTINGS, inputs={})  # equal settings: resumed
    with pytest.raises(StageError, match=r"started with other settings: mining\.collect: 20 -> 30"):
        begin(root, config={"seed": 0, "mining": {"collect": 30, "severities": (3, 5)}}, inputs={})
    assert json.loads((root / "begun.json").read_text(encoding="utf-8"))["config"]["mining"]["collect"] == 20


def test_a_stage_is_done_only_once_it_has_a_manifest(root: Place) -> None:
    (root / "a.bin").write_bytes(b"0")
    assert check(root) is None
    with pytest.raises(StageError, match=r"is not finished.*Do this first"):
        require_manifest(root, "Do this first.")
    manifest = made(root)
    assert check(root) == manifest == require_manifest(root, "")
    discard(root)
    assert check(root) is None
    assert not root.exists()


def test_changed_settings_and_inputs_are_refused_with_the_difference(root: Place) -> None:
    made(root)
    with pytest.raises(StageError, match=r"seed: 0 -> 1\. .*--restart"):
        check(root, config=SETTINGS | {"seed": 1})
    with pytest.raises(StageError, match="gone: None -> 3"):
        check(root, config=SETTINGS | {"gone": 3})
    with pytest.raises(StageError, match=r"inputs\.train: abc -> xyz"):
        check(root, inputs={"train": "xyz"})


@pytest.mark.parametrize("content", [b"", b"012345678", b"0123456789+"])
def test_a_file_of_another_size_is_refused_by_name(root: Place, content: bytes) -> None:
    made(root)
    (root / "a.bin").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"a\.bin has {len(content)} bytes; its manifest promises 10 bytes\. .*--restart"
    ):
        check(root)
    (root / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin is missing"):
        check(root)


def test_a_changed_byte_is_detected_by_the_checksum(root: Place) -> None:
    manifest = made(root)
    verify_checksums(root, manifest)
    (root / "a.bin").write_bytes(b"0123456_89")
    with pytest.raises(DataError, match=r"a\.bin differs from its checksum"):
        verify_checksums(root, manifest)


def test_the_digest_depends_on_bytes_and_settings_and_not_on_versions(root: Place) -> None:
    manifest = made(root)
    assert manifest.digest == made(root).digest
    assert Manifest(**(vars(manifest) | {"versions": {}})).digest == manifest.digest
    assert Manifest(**(vars(manifest) | {"config": {}})).digest != manifest.digest
    (root / "a.bin").write_bytes(b"0123456_89")
    changed = write_manifest(root, stage="s", config=SETTINGS, inputs=INPUTS, files=["a.bin", "b.bin"])
    assert changed.digest != manifest.digest


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"files": 3}', '{"files": {}}', '{"files": {"a": [1]}}']
)
def test_a_damaged_manifest_is_refused_by_name(root: Place, content: str) -> None:
    write_text(root / "manifest.json", content)
    with pytest.raises(
        DataError, match=r"manifest\.json is damaged \((it (is|lacks|has)|its fields are) .*--restart"
    ):
        read_manifest(root)


def test_the_second_of_two_writers_finds_the_environment_finished(root: Place) -> None:
    paths = [root / "parts" / f"part-{i}.arrow" for i in range(2)]
    for i, path in enumerate(paths):
        write_part(path, mined(10, i))
    first = finish(root, paths)
    assert finish(root, paths) == first  # its parts have been removed by now
    with pytest.raises(StageError, match="other settings"):
        finish_environment(
            root, paths, odd_and_even, stage="mine fog", config={"seed": 1}, inputs=INPUTS, num_classes=10
        )


def test_many_writers_finish_one_environment(tmp_path: Path) -> None:
    def write(_: int) -> Manifest:
        paths = [tmp_path / "parts" / f"part-{i}.arrow" for i in range(3)]
        with suppress(FileNotFoundError):  # another writer removed the parts; mining tolerates this, too
            for i, path in enumerate(paths):
                write_part(path, mined(20, i))
        return finish(tmp_path, paths)

    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(write, range(8)))
    assert len({m.digest for m in manifests}) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "parts") == [
        "collect.arrow",
        "fail.arrow",
        "manifest.json",
    ]
    verify_checksums(tmp_path, manifests[0])


@pytest.mark.parametrize("key", ["rows", "facts", "stage", "config", "files"])
def test_a_manifest_edited_by_hand_is_refused_as_damaged(root: Place, key: str) -> None:
    made(root)
    content = json.loads((root / "manifest.json").read_text())
    content[key] = {} if isinstance(content[key], dict) and content[key] else "x"
    write_text(root / "manifest.json", json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(root)


def test_the_folder_of_another_stage_is_refused(root: Place) -> None:
    made(root)
    with pytest.raises(StageError, match=r"holds 's', where 't' belongs"):
        check_done(root, stage="t", config=SETTINGS, inputs=INPUTS)


def whole(root: Place) -> Manifest | None:
    return check_whole(root, stage="s", config=SETTINGS, inputs=INPUTS)


def test_a_damaged_file_of_a_stage_that_repeats_itself_is_deleted_and_named(
    root: Place, caplog: pytest.LogCaptureFixture
) -> None:
    made(root)
    assert whole(root) is not None
    (root / "a.bin").write_bytes(b"0123456780")
    assert whole(root) is None
    (line,) = caplog.messages
    assert "a.bin is damaged" in line
    assert [p.name for p in find(root, "*")] == ["b.bin"]


def test_a_folder_in_place_of_a_file_is_refused_and_kept(tmp_path: Path) -> None:
    for name in ("a.bin", "manifest.json"):
        folder = tmp_path / name.partition(".")[0]
        made(folder)
        (folder / name).unlink()
        (folder / name / "x").mkdir(parents=True)
        with pytest.raises(DataError, match=rf"{re.escape(name)} is a folder, where .* Move it away"):
            whole(folder)
        assert (folder / name / "x").is_dir()


def test_a_damaged_local_copy_is_fetched_again(s3: str) -> None:
    root = place(s3)
    manifest = made(root)
    copy = local(root / "a.bin")
    copy.write_bytes(b"x" * copy.stat().st_size)
    verify_checksums(root, manifest)
    assert local(root / "a.bin").read_bytes() == b"0123456789"
    local(root / "a.bin").write_bytes(b"cut")
    assert local(root / "a.bin").read_bytes() == b"0123456789"


@pytest.mark.parametrize("content", ["{", "3", "null"])
def test_a_damaged_begun_file_is_rewritten_only_for_sealed_parts(root: Place, content: str) -> None:
    write_text(root / "begun.json", content)
    with pytest.raises(DataError, match=r"begun\.json is damaged"):
        begin(root, config=SETTINGS, inputs=INPUTS)
    begin(root, config=SETTINGS, inputs=INPUTS, sealed=True)
    with pytest.raises(StageError, match="seed: 0 -> 1"):
        begin(root, config={**SETTINGS, "seed": 1}, inputs=INPUTS, sealed=True)
