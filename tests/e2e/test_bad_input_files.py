"""Files that are not what they should be: configurations, weights, runs, images, and places to write to."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bad_input import Cli, cut, files_under
from metarepair.weights import SHIPPED
from tasks.storage.paths import writing

pytestmark = pytest.mark.usefixtures("watched")

Make = Callable[[Path], object]
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def written(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def linked(target: str) -> Make:
    return lambda path: path.symlink_to(path.parent / target)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(written(b""), "is empty", id="empty"),
        pytest.param(written(b"# only\n"), "is empty", id="comments"),
        pytest.param(written(b"- a\n"), "holds a list", id="list"),
        pytest.param(written(b"3\n"), "holds one value", id="number"),
        pytest.param(written(bytes(range(256))), "not a text file in UTF-8", id="binary"),
        pytest.param(written("name: é".encode("latin-1")), "not a text file in UTF-8", id="latin-1"),
        pytest.param(written("name: a".encode("utf-16")), "not a text file in UTF-8", id="utf-16"),
        pytest.param(written(b"\xef\xbb\xbfname: ["), "is not YAML", id="byte order mark"),
        pytest.param(written(b"# x\n" * 400_000), "1,600,000 bytes", id="huge"),
        pytest.param(written(b"name: " + b"{a: " * 900), "nested too deeply", id="deep"),
        pytest.param(written(b"? [a]\n: 2\n"), "unhashable key", id="key that is a list"),
        pytest.param(written(b"1: 2\n"), "the setting 'name' is missing", id="key that is a number"),
        pytest.param(written(b'name: "a\\0"\n'), "a text has a null character", id="null character"),
        pytest.param(written(b'name: "\\e[31m"\n'), r"name='\x1b[31m'", id="escape sequence"),
        pytest.param(Path.mkdir, "it is a folder", id="folder"),
        pytest.param(os.mkfifo, "it is a pipe", id="pipe"),
        pytest.param(linked("absent"), "it does not exist", id="link to nothing"),
        pytest.param(linked("given.yaml"), "Too many levels of symbolic links", id="link to itself"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(fresh: Cli, make: Make, says: str) -> None:
    make(fresh.folder / "given.yaml")
    fresh.assert_refused("run", "--config", str(fresh.folder / "given.yaml"), says=["given.yaml", says])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "it is a folder"),
        ("-", "it does not exist"),
        ("/dev/zero", "it is a pipe, a socket or a device"),
        ("/dev/stdin", "it is a pipe, a socket or a device"),
        ("/proc/self/mem", "cannot be read"),
        ("~no-such-user/a.yaml", "it does not exist"),
        ("s3://bucket/a.yaml", "it does not exist"),
        ("caf\udce9.yaml", r"caf\udce9.yaml cannot be read: it does not exist"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_that_is_no_configuration_is_refused(fresh: Cli, path: str, says: str) -> None:
    if path == "/dev/stdin" and not Path(path).is_char_device():
        pytest.skip("standard input is a file here")
    fresh.assert_refused("mine", "--config", path, says=[says])


def shipped() -> dict[str, torch.Tensor]:
    return load_file(SHIPPED / "resnet8_cifar10.safetensors")


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    """Write the shipped weights with all floating-point tensors changed."""
    return lambda path: save_file(
        {k: change(v) if v.is_floating_point() else v for k, v in shipped().items()}, path
    )


RAW = (SHIPPED / "resnet8_cifar10.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(written(b""), "is empty", id="empty"),
        pytest.param(written(b"weights"), "is not a whole safetensors file", id="text"),
        pytest.param(written(RAW[:4]), "is not a whole safetensors file", id="four bytes"),
        pytest.param(written(RAW[:-1]), "is not a whole safetensors file", id="one byte short"),
        pytest.param(written(RAW + b"x"), "is not a whole safetensors file", id="one byte more"),
        pytest.param(written(bytes(64)), "is not a whole safetensors file", id="zeros"),
        pytest.param(
            written((10**18).to_bytes(8, "little") + RAW[8:]), "is not a whole safetensors", id="long header"
        ),
        pytest.param(
            written((4).to_bytes(8, "little") + b"{{{{"), "is not a whole safetensors", id="bad header"
        ),
        pytest.param(written((2).to_bytes(8, "little") + b"{}"), "47 tensors are missing", id="no tensors"),
        pytest.param(changed(lambda v: v * torch.nan), "is not finite", id="NaN"),
        pytest.param(changed(lambda v: v * torch.inf), "is not finite", id="infinity"),
        pytest.param(changed(lambda v: v.to(torch.int32)), "holds whole numbers", id="integers"),
        pytest.param(
            lambda path: save_file(shipped() | {"more": torch.zeros(3)}, path), "1 unexpected", id="one more"
        ),
        pytest.param(
            lambda path: save_file({"fc.weight": shipped()["fc.weight"]}, path), "are missing", id="one only"
        ),
        pytest.param(lambda path: torch.save([1, 2], path), "holds list", id="named wrongly"),
        pytest.param(Path.mkdir, "is a folder", id="folder"),
        pytest.param(os.mkfifo, "no such file", id="pipe"),
        pytest.param(linked("model.safetensors"), "no such file", id="link to itself"),
    ],
)
def test_a_safetensors_file_that_cannot_be_used_is_refused(fresh: Cli, make: Make, says: str) -> None:
    make(fresh.folder / "model.safetensors")
    fresh.assert_refused("mine", "--weights", str(fresh.folder / "model.safetensors"), says=[says])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda path: torch.save([1, 2], path), "holds list", id="list"),
        pytest.param(lambda path: torch.save({}, path), "it holds nothing", id="nothing"),
        pytest.param(
            lambda path: torch.save({"state_dict": {}}, path), "holds no state dict", id="no tensors"
        ),
        pytest.param(lambda path: torch.save(torch.zeros(3), path), "holds Tensor", id="tensor"),
        pytest.param(
            lambda path: torch.save({1: torch.zeros(3)}, path), "holds no state dict", id="keys are numbers"
        ),
        pytest.param(written(b"PK\x03\x04junk"), "is truncated or damaged", id="broken zip"),
        pytest.param(written(b"\x1f\x8b\x08\x00junk"), "is compressed with gzip", id="gzip"),
        pytest.param(written(b"\x89HDF\r\n\x1a\njunk"), "neither a safetensors file nor", id="HDF5"),
        pytest.param(written(b"\x08\x07\x12\x07pytorch"), "neither a safetensors file nor", id="ONNX"),
        pytest.param(
            lambda path: Image.fromarray(NOISE).save(path, format="PNG"), "neither a safetensors", id="image"
        ),
    ],
)
def test_a_torch_file_that_cannot_be_used_is_refused(fresh: Cli, make: Make, says: str) -> None:
    make(fresh.folder / "model.pt")
    fresh.assert_refused("mine", "--weights", str(fresh.folder / "model.pt"), says=["model.pt", says])


@pytest.mark.parametrize("verb", ["inspect", "status"])
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("absent", "does not exist"),
        ("runs/tinny", "does not exist"),
        ("runs", "is a folder of runs (tiny)"),
        ("tiny.yaml", "tiny.yaml is"),
        ("runs/tiny/report", "Name the run|inspect the run"),
        ("empty", "is empty"),
        ("pipe", "pipe is"),
        ("loop", "does not exist"),
        ("", "a path is empty"),
        ("~no-such-user", "home folder of an unknown user"),
        ("s3://", "names no bucket"),
        ("ftp://host/run", "has the scheme 'ftp'"),
        ("\x1b[31mred", r"\x1b[31mred does not exist"),
        ("x" * 300, "cannot be read"),
        ("--nope", "arguments are required"),
    ],
)
def test_a_path_that_is_no_run_is_refused(
    done: Cli, monkeypatch: pytest.MonkeyPatch, verb: str, path: str, says: str
) -> None:
    monkeypatch.chdir(done.folder)
    (done.folder / "empty").mkdir()
    os.mkfifo(done.folder / "pipe")
    (done.folder / "loop").symlink_to(done.folder / "loop")
    message = done.assert_refused(verb, path, says=[])
    assert any(word in message for word in says.split("|")), message


@pytest.mark.parametrize(
    "name",
    [
        "experiences/shot_noise/collect.arrow",
        "experiences/shot_noise/fail.arrow",
        "experiences/shot_noise/manifest.json",
        "targets/gaussian_noise/manifest.json",
        "features/target-gaussian_noise/manifest.json",
        "features/target-gaussian_noise/moments.npy",
        "features/target-gaussian_noise/part-00000.parquet",
        "score/fid.parquet",
        "score/confidence.csv",
        "score/manifest.json",
        "meta/gaussian_noise/start.safetensors",
        "meta/gaussian_noise/metrics.json",
        "repaired/gaussian_noise/result.json",
        "repaired/gaussian_noise/samples.parquet",
        "repaired/gaussian_noise/metarepair/0/model.safetensors",
    ],
)
@pytest.mark.parametrize("how", ["empty", "cut", "random", "folder"])
def test_every_damaged_file_of_a_run_is_named(done: Cli, name: str, how: str) -> None:
    damage(done.root / name, how)
    code, out, err = done.answer("inspect", str(done.root))
    assert code == 2
    assert "1 damaged file" in err
    assert name in err
    assert "un `metarepair" in err
    assert "gaussian_noise" in out
    assert "Traceback" not in err


def damage(path: Path, how: str) -> None:
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        cut(path)
    elif how == "random":
        path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("name", ["manifest.json", "result.json"])
@pytest.mark.parametrize(
    "how", ["null", "a list", "no fields", "other types", "later version", "NaN", "deep"]
)
def test_a_damaged_record_of_a_repair_is_refused_by_report(done: Cli, name: str, how: str) -> None:
    path = done.root / "repaired" / "gaussian_noise" / name
    content = json.loads(path.read_text(encoding="utf-8"))
    changes = {
        "null": "null",
        "a list": "[1]",
        "no fields": "{}",
        "other types": json.dumps({key: [3] for key in content}),
        "later version": json.dumps(content | {"schema_version": 99, "later": {}}),
        "NaN": json.dumps(dict.fromkeys(content, float("nan"))),
        "deep": "[" * 100_000,
    }
    path.write_text(changes[how], encoding="utf-8")
    done.assert_refused("report", says=[name, "--restart"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "result.json is damaged"),
        (b"null", "result.json is damaged"),
        (b"{}", "result.json is damaged (it lacks 'config')"),
        (b'{"config": 3}', "it must be a group of settings"),
        (b'{"config": {"name": 3}}', "name=3"),
        (b"\xff", "result.json is damaged"),
        (b"[" * 100_000, "result.json is damaged"),
    ],
)
def test_export_refuses_damaged_settings_of_a_run(done: Cli, content: bytes, says: str) -> None:
    (done.root / "repaired" / "gaussian_noise" / "result.json").write_bytes(content)
    out = str(done.folder / "out.safetensors")
    done.assert_refused("export", str(done.root), "--format", "original", "--out", out, says=[says])


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("absent", "does not exist"),
        ("runs/tiny/score", "neither a weights file nor a run"),
        ("tiny.yaml", "Add --config FILE"),
        ("pipe", "neither a weights file nor a run"),
        ("", "a path is empty"),
        ("~no-such-user", "home folder of an unknown user"),
        ("ftp://host/run", "has the scheme 'ftp'"),
        ("x" * 300, "too long"),
    ],
)
def test_export_refuses_a_path_without_repaired_weights(
    done: Cli, monkeypatch: pytest.MonkeyPatch, path: str, says: str
) -> None:
    monkeypatch.chdir(done.folder)
    os.mkfifo(done.folder / "pipe")
    done.assert_refused("export", path, "--format", "torch", "--out", "out.pt2", says=[says])


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("pipe", "it is a pipe, a socket or a device"),
        ("runs", "is a folder"),
        ("tiny.yaml/out.pt2", "Something else is there"),
        ("", "a path is empty"),
        ("~no-such-user/out.pt2", "home folder of an unknown user"),
        ("ftp://host/out.pt2", "has the scheme 'ftp'"),
        ("x" * 300, "too long"),
        ("runs/tiny/repaired/gaussian_noise/metarepair/0/model.safetensors", "would be overwritten"),
    ],
)
def test_export_refuses_a_place_that_it_cannot_write(
    done: Cli, monkeypatch: pytest.MonkeyPatch, out: str, says: str
) -> None:
    monkeypatch.chdir(done.folder)
    os.mkfifo(done.folder / "pipe")
    done.assert_refused("export", "runs/tiny", "--format", "original", "--out", out, says=[says])
    assert stat.S_ISFIFO((done.folder / "pipe").stat().st_mode)


def test_nothing_written_takes_the_place_of_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="it is a pipe, a socket or a device"), writing(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def small(size: tuple[int, int]) -> Make:
    return lambda path: Image.new("RGB", size).save(path)


def tiff(kind: type) -> Make:
    return lambda path: Image.fromarray(NOISE[..., 0].astype(kind) * 100_000).save(path, format="TIFF")


def half_a_picture(path: Path) -> None:
    Image.fromarray(NOISE).save(path)
    cut(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(Path.exists, "does not exist", id="missing"),
        pytest.param(written(b""), "cannot be read as an image", id="empty"),
        pytest.param(written(b"hello"), "cannot be read as an image", id="text"),
        pytest.param(written(b"<svg/>"), "cannot be read as an image", id="SVG"),
        pytest.param(written(b"%PDF-1.4"), "cannot be read as an image", id="PDF"),
        pytest.param(
            lambda path: Image.fromarray(NOISE).save(path, "EPS"), "cannot be read as an image", id="EPS"
        ),
        pytest.param(half_a_picture, "cannot be read as an image", id="truncated"),
        pytest.param(tiff(np.float32), "its pixels are floating-point numbers", id="floats"),
        pytest.param(tiff(np.int32), "its pixels are 32-bit numbers", id="32 bits"),
        pytest.param(small((1, 1)), "at least 8x8 is needed", id="one pixel"),
        pytest.param(small((8, 7)), "at least 8x8 is needed", id="seven pixels high"),
        pytest.param(small((1, 3000)), "at least 8x8 is needed", id="one pixel wide"),
        pytest.param(Path.mkdir, "cannot be read as an image", id="folder"),
        pytest.param(os.mkfifo, "it is a pipe, a socket or a device", id="pipe"),
        pytest.param(linked("given.png"), "cannot be read as an image", id="link to itself"),
    ],
)
def test_an_image_that_cannot_be_corrupted_is_refused(fresh: Cli, make: Make, says: str) -> None:
    image = fresh.folder / "given.png"
    make(image)
    fresh.assert_refused(
        "corruptions", "--image", str(image), "--out", str(fresh.folder / "sheet.png"), says=[says]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs --list, or --image FILE and --out FILE together"),
        (["--image", "a.png"], "needs --list, or --image FILE and --out FILE together"),
        (["--out", "b.png"], "needs --list, or --image FILE and --out FILE together"),
        (["--image", "a.png", "--out", "b"], "ends in neither .png nor .jpg"),
        (["--image", "a.png", "--out", "b.gif"], "ends in neither .png nor .jpg"),
        (["--image", "a.png", "--out", "a.png"], "is the image itself"),
        (["--image", "a.png", "--out", "pipe.png"], "it is a pipe, a socket or a device"),
        (["--image", "a.png", "--out", "folder.png"], "Something else is there"),
        (["--image", "a.png", "--out", "tiny.yaml/b.png"], "Something else is there"),
        (["--image", "a.png", "--out", "x" * 300 + ".png"], "File name too long"),
        (["--image", "a.png", "--out", "b.png", "--table", "nope"], "no severity table 'nope'"),
        (["--list", "--table", ""], "no severity table ''"),
        (["--list", "--seed", "1.5"], "invalid int value"),
        (["--list", "fog"], "unrecognized arguments: fog"),
        (["--list", "--severity", "9"], "unrecognized arguments: --severity 9"),
    ],
)
def test_wrong_arguments_of_corruptions_are_refused(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(fresh.folder)
    Image.fromarray(NOISE).save("a.png")
    (fresh.folder / "folder.png").mkdir()
    os.mkfifo("pipe.png")
    fresh.assert_refused("corruptions", *arguments, says=[says])
    assert stat.S_ISFIFO((fresh.folder / "pipe.png").stat().st_mode)


@pytest.mark.parametrize(
    ("sheet", "says"),
    [
        ("sheet.gif", "ends in neither .png nor .jpg"),
        ("pipe.png", "it is a pipe, a socket or a device"),
        ("tiny.yaml/sheet.png", "Something else is there"),
        ("x" * 300 + ".png", "File name too long"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_refused(
    done: Cli, monkeypatch: pytest.MonkeyPatch, sheet: str, says: str
) -> None:
    monkeypatch.chdir(done.folder)
    os.mkfifo("pipe.png")
    done.assert_refused("inspect", "runs/tiny/experiences/shot_noise", "--sheet", sheet, says=[says])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(fresh: Cli) -> None:
    closed = fresh.folder / "closed"
    closed.mkdir(mode=0o500)
    fresh.assert_refused("mine", "--storage", str(closed / "runs"), says=["cannot be written"])


def test_a_run_that_is_a_link_to_nothing_is_refused(done: Cli) -> None:
    before = files_under(done.folder)
    shutil.move(done.root, done.folder / "moved")
    done.root.symlink_to(done.folder / "absent")
    code, err = done.run("status", str(done.root))
    assert code == 2
    assert "does not exist" in err
    assert len(files_under(done.folder)) == len(before)


def test_damaged_weights_of_a_run_are_not_exported(done: Cli) -> None:
    weights = done.root / "repaired" / "gaussian_noise" / "metarepair" / "0" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    out = done.folder / "program.pt2"
    done.assert_refused(
        "export", str(done.root), "--format", "torch", "--out", str(out), says=["differs from its checksum"]
    )
    assert not out.exists()
