"""Check that two recordings are compared to the last bit, except for what may differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.golden_run import CASES, IGNORED_KEYS, LEFT_OUT, TEXT_RULES, compare, is_ignored, main
from tasks.records import MEASURED

WEIGHTS = "runs/first/repaired/fog/finetune/0/model.safetensors"
RESULT = "runs/first/repaired/fog/result.json"
SAMPLES = "runs/first/repaired/fog/samples.parquet"
TABLE = "runs/first/report/table.md"
PAGE = "runs/first/report/index.html"
MANIFEST = "runs/first/repaired/fog/manifest.json"
SAID = "said/first/stdout.txt"
INSPECTED = "said/inspect-json-first/stdout.json"
JUDGED = "runs/arachne/compare/fog/arachne/0/judged.json"
META_DIGEST = "0123456789abcdef01234567"


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    write_json(path, content)


def write_weights(path: Path, values: list[float], *, seconds: float, metadata: dict[str, str]) -> None:
    """Write a safetensors file of two tensors, with its metadata in the given order."""
    tensors = {"fc.weight": np.array(values, np.float32), "spent.seconds": np.array([seconds], np.float32)}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": [tensor.size], "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A recording with one file of each kind that the tests change."""
    folder = tmp_path / "old"
    for name in (WEIGHTS, TABLE, SAID, INSPECTED, JUDGED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recording.json", {"out": str(folder), "checkout": "/code/old", "commit": "a"})
    write_weights(folder / WEIGHTS, [1.0, 2.0], seconds=0.5, metadata={"model": "a", "data": "b"})
    write_json(
        folder / RESULT,
        {
            "clean": 0.655,
            "seconds": 1.25,
            "storage": f"{folder}/runs",
            "config": {"task": {"shots": 1}, "repair": {"episodes": 1}},
        },
    )
    rows = {"image_id": [1, 2], "after": [3, 4], "distance": [0.5, float("nan")], "seconds": [0.1, 0.2]}
    pq.write_table(pa.table(rows), folder / SAMPLES)
    (folder / TABLE).write_text(
        "# fog\n\n| method | clean % | seconds | notes |\n| --- | ---: | ---: | --- |\n| Tent | 62.0 | 0.2 |  |\n",
        encoding="utf-8",
    )
    (folder / PAGE).write_text(
        "<h1>fog</h1><table><tr><th>method</th><th>clean %</th><th>seconds</th></tr>"
        "<tr><td>Tent</td><td>62.0</td><td>0.2</td></tr></table>\n<pre>name: first\ntask:\n  shots: 1\n</pre>\n",
        encoding="utf-8",
    )
    write_json(
        folder / MANIFEST,
        {
            "checksum": "aa",
            "versions": {"metarepair": "0.1.0", "torch": "2.15.0"},
            "files": {"result.json": [300, "bb"], "0/model.safetensors": [200, "cc"]},
            "inputs": {"meta": META_DIGEST, "train": "ffffffffffffffffffffffff"},
        },
    )
    (folder / SAID).write_text(
        f"mine: 3 of 8 shards, 2.5 shards/s, 2 s left\nfog: repaired in 0.2 s\nsnow: done\n"
        f"Written to {folder}/runs/first\n\n"
        "trial       objective %  seconds\ntrial-0001  66.7         1\n\n2 trials\n",
        encoding="utf-8",
    )
    write_json(
        folder / INSPECTED,
        {"path": f"{folder}/runs/first", "stages": [{"path": "meta/fog", "result": META_DIGEST}]},
    )
    write_json(folder / JUDGED, {"clean": 0.80, "corrupted_by_severity": {"3": 0.50}})
    return folder


@pytest.fixture
def new(old: Path, tmp_path: Path) -> Path:
    """A copy of the recording in another folder, with the paths of that folder."""
    folder = Path(shutil.copytree(old, tmp_path / "another" / "new"))
    for path in (folder / "recording.json", folder / RESULT, folder / SAID, folder / INSPECTED):
        replace(path, str(old), str(folder))
    return folder


def test_equal_recordings_have_no_difference(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(old, new) == []
    assert main(["compare", str(old), str(new)]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_changed_bit_of_a_weight_is_reported(
    old: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((new / WEIGHTS).read_bytes())
    content[-8] ^= 1  # the lowest bit of the last weight; the seconds come after it
    (new / WEIGHTS).write_bytes(content)
    assert main(["compare", str(old), str(new)]) == 1
    assert capsys.readouterr().out.startswith(f"{WEIGHTS}: fc.weight: 'F32 [2], digest ")


def test_the_order_of_metadata_and_a_tensor_of_seconds_are_ignored(old: Path, new: Path) -> None:
    write_weights(new / WEIGHTS, [1.0, 2.0], seconds=9.5, metadata={"data": "b", "model": "a"})
    assert compare(old, new) == []
    write_weights(new / WEIGHTS, [1.0, 2.0], seconds=9.5, metadata={"data": "b", "model": "c"})
    assert compare(old, new) == [f"{WEIGHTS}: metadata.model: 'a' -> 'c'"]


def test_truncated_weights_are_reported(old: Path, new: Path) -> None:
    (new / WEIGHTS).write_bytes((new / WEIGHTS).read_bytes()[:6])
    (found,) = compare(old, new)
    assert found.startswith(f"{WEIGHTS}: cannot be read")


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_file_missing_on_either_side_is_reported(old: Path, new: Path, side: str) -> None:
    ((new if side == "old" else old) / WEIGHTS).unlink()
    assert compare(old, new) == [f"{WEIGHTS}: only in the {side} recording"]


@pytest.mark.parametrize(
    ("name", "before", "after", "says"),
    [
        (RESULT, "0.655", "0.6550000000000001", "clean: 0.655 -> 0.6550000000000001"),
        (RESULT, '"shots": 1', '"shots": 1.0', "config.task.shots: 1 -> 1.0"),
        (TABLE, "62.0", "62.1", "-Tent | 62.0"),
        (PAGE, "62.0", "62.1", "-Tent | 62.0"),
        (PAGE, "shots: 1", "shots: 2", '-{"name": "first", "task": {"shots": 1}}'),
        (MANIFEST, '"cc"', '"dd"', "files.0/model.safetensors[1]: 'cc' -> 'dd'"),
        (MANIFEST, "ffffffff", "eeeeeeee", "inputs.train: "),
        (SAID, "snow: done", "snow: done\nsnow: done", "only in the new: snow: done"),
        (SAID, "66.7", "66.8", "only in the old: trial-0001 | 66.7"),
        (JUDGED, "0.8", "0.69", "clean: 0.800 -> 0.690, more than 10 points"),
    ],
)
def test_a_changed_figure_is_reported(
    old: Path, new: Path, name: str, before: str, after: str, says: str
) -> None:
    replace(new / name, before, after)
    found = compare(old, new)
    assert found
    assert all(line.startswith(f"{name}: ") for line in found)
    assert found[0].startswith(f"{name}: {says}")


def test_a_changed_value_or_type_of_a_parquet_column_is_reported(old: Path, new: Path) -> None:
    table = pq.read_table(new / SAMPLES)
    changed = table.set_column(1, "after", pa.array([3, 5]))
    pq.write_table(changed, new / SAMPLES)
    assert compare(old, new) == [f"{SAMPLES}: after (int64)[1]: 4 -> 5"]
    pq.write_table(table.set_column(1, "after", pa.array([3, 4], pa.int32())), new / SAMPLES)
    assert len(compare(old, new)) == 2


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (RESULT, "1.25", "9.75"),
        (TABLE, "| 0.2 |", "| 17.9 |"),
        (PAGE, "<td>0.2</td>", "<td>17.9</td>"),
        (SAID, "repaired in 0.2 s", "repaired in 1 min 2 s"),
        (
            SAID,
            "mine: 3 of 8 shards, 2.5 shards/s, 2 s left\n",
            "mine: 7 of 8 shards, 1 shards/s, 1 s left\n" * 2,
        ),
        (SAID, "fog: repaired in 0.2 s\nsnow: done", "snow: done\nfog: repaired in 0.2 s"),
        (SAID, "66.7         1", "66.7        12"),
        (MANIFEST, '"aa"', '"ab"'),
        (MANIFEST, "0.1.0", "0.2.0"),
        (MANIFEST, '[300, "bb"]', '[301, "bc"]'),
        (JUDGED, "0.8", "0.71"),
    ],
)
def test_seconds_order_of_lines_and_digests_of_files_with_seconds_are_ignored(
    old: Path, new: Path, name: str, before: str, after: str
) -> None:
    replace(new / name, before, after)
    assert compare(old, new) == []


def test_a_setting_missing_from_an_old_recording_equals_only_its_default(old: Path, new: Path) -> None:
    edit_json(new / RESULT, lambda content: content["config"]["task"].update(clean_support=0))
    edit_json(new / RESULT, lambda content: content["config"]["repair"].update(interpolate=[1.0]))
    assert compare(old, new) == []
    edit_json(new / RESULT, lambda content: content["config"]["task"].update(clean_support=4))
    assert compare(old, new) == [f"{RESULT}: config.task.clean_support: only in the new: 4"]


def test_a_stage_may_have_another_digest_if_its_users_refer_to_the_same_stage(old: Path, new: Path) -> None:
    other = "89abcdef0123456789abcdef"
    replace(new / INSPECTED, META_DIGEST, other)
    (found,) = compare(old, new)  # the manifest still has the old digest, which no stage has now
    assert found.startswith(f"{MANIFEST}: inputs.meta: '<result of first/meta/fog>' -> ")
    replace(new / MANIFEST, META_DIGEST, other)
    assert compare(old, new) == []


def test_every_case_has_a_unique_name_and_every_exception_has_a_reason() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(reason for reason in (*IGNORED_KEYS.values(), *LEFT_OUT.values()))
    assert all(reason for _, _, reason in TEXT_RULES)


def test_every_measured_column_is_ignored() -> None:
    # `memory` is also a setting, so the sentence of that name is compared by a rule for text.
    assert [name for name in MEASURED if not is_ignored(name)] == ["memory"]
