"""Check that local files and remote objects behave alike: written whole or not at all, and named in errors."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tasks.errors import ConfigError, DataError, StorageError
from tasks.storage.paths import (
    Place,
    append_line,
    copy_file,
    find,
    inside,
    local,
    place,
    read_json_lines,
    read_table,
    remove_tree,
    size_of,
    write_table,
    write_text,
    writing,
    writing_folder,
)
from tasks.storage.remote import RemotePath, cache_folder


def test_a_written_file_is_read_back(root: Place) -> None:
    write_text(root / "a" / "b.txt", "θ")
    assert (root / "a" / "b.txt").read_text(encoding="utf-8") == "θ"
    assert local(root / "a" / "b.txt").read_bytes() == "θ".encode()
    assert size_of(root / "a" / "b.txt") == 2
    assert (root / "a" / "b.txt").is_file()
    assert (root / "a").exists()
    assert not (root / "a").is_file()


def test_a_replaced_file_of_the_same_size_is_read_again(root: Place) -> None:
    path = root / "x.bin"
    for content in (b"one", b"two", b"six"):
        with writing(path) as part:
            part.write_bytes(content)
        assert local(path).read_bytes() == content
        assert path.read_bytes() == content


def test_an_open_copy_keeps_its_content_after_the_file_is_replaced(root: Place) -> None:
    path = root / "x.bin"
    with writing(path) as part:
        part.write_bytes(b"before")
    with local(path).open("rb") as stream:
        with writing(path) as part:
            part.write_bytes(b"behind")
        assert stream.read() == b"before"


def test_a_writing_block_that_raises_leaves_no_file(root: Place) -> None:
    (root / "old.txt").parent.mkdir(parents=True, exist_ok=True)
    write_text(root / "old.txt", "old")

    def fill(name: str) -> None:
        with writing(root / name) as part:
            part.write_text("half")
            raise RuntimeError

    for name in ("old.txt", "new.txt"):
        with pytest.raises(RuntimeError):
            fill(name)
    assert [p.name for p in find(root, "*")] == ["old.txt"]
    assert (root / "old.txt").read_text() == "old"
    assert not list(cache_folder().rglob("*.tmp")) if isinstance(root, RemotePath) else True


def test_a_folder_appears_whole_in_place_of_an_older_one_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below/folder"
    for text in ("first", "second"):
        with writing_folder(path) as part:
            (part / text).write_text(text, encoding="utf-8")
            assert not (path / text).exists()
        assert [one.name for one in path.iterdir()] == [text]
    with pytest.raises(FileNotFoundError), writing_folder(path) as part:
        (part / "third").rename(part / "missing")
    assert [one.name for one in path.iterdir()] == ["second"]
    assert [one.name for one in path.parent.iterdir()] == ["folder"]


def test_an_older_folder_stays_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "folder", Path.rename
    (path / "older").mkdir(parents=True)

    def refused(self: Path, target: Path) -> Path:
        if target == path and not (self / "older").exists():
            raise PermissionError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError), writing_folder(path):
        pass
    assert (path / "older").is_dir()
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_a_missing_file_is_reported_as_missing_by_every_function(root: Place) -> None:
    path = root / "none"
    assert (path.exists(), path.is_file(), size_of(path), find(path, "*")) == (False, False, None, [])
    for read in (lambda: path.read_bytes(), lambda: local(path).read_bytes()):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(FileNotFoundError):
        path.unlink()
    path.unlink(missing_ok=True)
    remove_tree(path)


def test_files_of_a_tree_are_found_in_order_and_removed_completely(root: Place) -> None:
    for name in ("b/2.json", "b/1.json", "a/c/1.json", "a/1.txt"):
        write_text(root / name, name)
    assert [inside(p, root) for p in find(root, "*.json", deep=True)] == [
        "a/c/1.json",
        "b/1.json",
        "b/2.json",
    ]
    assert [p.name for p in find(root / "b", "1.*")] == ["1.json"]
    remove_tree(root / "b")
    assert [inside(p, root) for p in find(root, "*.*", deep=True)] == ["a/1.txt", "a/c/1.json"]


def test_lines_are_appended(root: Place) -> None:
    write_text(root / "log", "")
    for line in ("a", "b"):
        append_line(root / "log", line)
    assert (root / "log").read_text() == "a\nb\n"


def test_a_line_after_a_torn_one_stands_on_its_own_and_readers_say_that_one_is_damaged(root: Place) -> None:
    assert read_json_lines(root / "log") == ([], 0)
    write_text(root / "log", '{"target": "fog"}\n{"targ')
    assert read_json_lines(root / "log") == ([{"target": "fog"}], 1)
    append_line(root / "log", '{"target": "snow"}')
    assert read_json_lines(root / "log") == ([{"target": "fog"}, {"target": "snow"}], 1)
    (root / "log").write_bytes(b'{"target": "fog"}\n\xff\xfe\n[1]\n' + b"[" * 100_000 + b"\n")
    assert read_json_lines(root / "log") == ([{"target": "fog"}], 3)


def test_the_format_of_a_written_table_follows_its_suffix(root: Place) -> None:
    table = pa.table({"x": [1, 2]})
    write_table(root / "t.csv", table)
    write_table(root / "t.parquet", table)
    assert (root / "t.csv").read_text() == '"x"\n1\n2\n'
    assert pq.read_table(local(root / "t.parquet")).equals(table)


def test_no_cell_of_a_csv_begins_a_formula(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "photo=1.png", None]
    table = pa.table({"file": names, "gain": [-1.5] * len(names)})
    write_table(tmp_path / "t.csv", table)
    read = pyarrow.csv.read_csv(
        tmp_path / "t.csv", convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    )
    assert read.column("file").to_pylist() == [*(f"'{name}" for name in names[:5]), "photo=1.png", None]
    assert read.column("gain").to_pylist() == [-1.5] * len(names)


def test_a_file_is_copied_to_the_storage_and_back(root: Place, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"abc")
    copy_file(tmp_path / "here", root / "there")
    copy_file(root / "there", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"abc"


def test_concurrent_writers_of_a_file_leave_the_whole_content_of_one(root: Place) -> None:
    def write(number: int) -> None:
        with writing(root / "x") as part:
            part.write_bytes(bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    content = local(root / "x").read_bytes()
    assert content == content[:1] * 1000
    assert [p.name for p in find(root, "*")] == ["x"]


def test_a_folder_that_is_removed_while_it_is_created_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, make = 0, os.mkdir

    def cleared(path: str, mode: int = 0o777) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise FileExistsError(path)  # the folder exists now, but not at pathlib's next check
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", cleared)
    write_text(tmp_path / "parts" / "x", "content")
    assert (tmp_path / "parts" / "x").read_text() == "content"
    assert calls == 2


@pytest.mark.parametrize("other", ["a file", "a link to nowhere"])
def test_a_file_or_link_in_place_of_a_folder_is_named(tmp_path: Path, other: str) -> None:
    if other == "a file":
        (tmp_path / "parts").write_text(other)
    else:
        (tmp_path / "parts").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot be written: .*parts\. Something else is there"):
        write_text(tmp_path / "parts" / "x", "content")


def test_a_copy_is_fetched_once(s3: str) -> None:
    path = place(s3) / "x.bin"
    path.write_bytes(b"abc")
    first = local(path)
    first.write_bytes(b"xyz")  # fetching again would overwrite this
    assert local(path) == first
    assert first.read_bytes() == b"xyz"


def test_remote_paths_have_the_attributes_of_pathlib() -> None:
    path = place("s3://bucket/a/b.tar/c.parquet")
    assert (path.name, path.stem, path.suffix) == ("c.parquet", "c", ".parquet")
    assert str(path.parent) == "s3://bucket/a/b.tar"
    assert str(path.with_name("d")) == "s3://bucket/a/b.tar/d"
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(place("gs://bucket/a//b/")) == "gs://bucket/a/b"


def test_a_path_without_a_scheme_is_local_and_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("runs") == tmp_path / "runs"
    assert place("~/x") == Path.home() / "x"


@pytest.mark.parametrize("text", ["s3://", "gs:///", "s3://a/../b", "ftp://a/b", "://x"])
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Give "):
        place(text)


def test_a_missing_bucket_is_named_with_the_settings_to_check(s3: str) -> None:
    path = place("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x .*AWS_ENDPOINT_URL.*again"):
        write_text(path, "x")


def test_a_failed_upload_leaves_no_temporary_file(s3: str) -> None:
    with pytest.raises(StorageError), writing(place("s3://no-such-bucket/x")) as part:
        part.write_bytes(b"abc")
    assert not list(cache_folder().rglob("*.tmp"))


def test_a_table_is_read_back_and_a_truncated_or_missing_one_is_named(root: Place) -> None:
    path = root / "table.parquet"
    with pytest.raises(DataError, match="does not exist"):
        read_table(path, "Make it again.")
    write_table(path, pa.table({"a": [1, 2]}))
    assert read_table(path, "Make it again.", columns=["a"]).to_pydict() == {"a": [1, 2]}
    for content in (b"", path.read_bytes()[:-9], b"no table at all"):
        with writing(path) as part:
            part.write_bytes(content)
        with pytest.raises(DataError, match=r"whole Parquet file.*\. Make it again\.$") as refused:
            read_table(path, "Make it again.")
        assert "magic" not in str(refused.value).lower()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_leaves(umask: int, mode: int, tmp_path: Path) -> None:
    code = (
        f"import os; os.umask({umask}); import pathlib; from tasks.storage.paths import write_text; "
        f"write_text(pathlib.Path({str(tmp_path / 'a')!r}), 'a')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
