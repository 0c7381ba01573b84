"""Files that claim far more than they hold are refused in little memory, and honest ones are read."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.datasets.archives import load_archive
from tasks.datasets.bounded import ALWAYS_BYTES
from tasks.datasets.cifar import load_cifar
from tasks.datasets.images import fit
from tasks.datasets.source import DataSource
from tasks.errors import DataError
from tasks.storage.paths import read_json
from watchdog import watched

HUGE = 10**11


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The start of an .npy file that claims a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz(folder: Path, **members: bytes) -> None:
    (folder / "cifar10").mkdir()
    with zipfile.ZipFile(folder / "cifar10" / "test.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def claims_too_much(folder: Path) -> None:
    npz(folder, images=header((HUGE, 32, 32, 3)) + bytes(3072), labels=header((1,), "<i8") + bytes(8))


def claims_too_little(folder: Path) -> None:
    npz(folder, images=header((1, 32, 32, 3)) + bytes(2 * 3072), labels=header((1,), "<i8") + bytes(8))


def is_a_bomb(folder: Path) -> None:
    count = 2 * ALWAYS_BYTES // 3072
    npz(
        folder,
        images=header((count, 32, 32, 3)) + bytes(count * 3072),
        labels=header((count,), "<i8") + bytes(8 * count),
    )


def holds_objects(folder: Path) -> None:
    npz(folder, images=header((1,), "|O") + pickle.dumps([1]), labels=header((1,), "<i8") + bytes(8))


def patched(folder: Path, *, flags: int = 0, method: int | None = None, packed: int | None = None) -> None:
    """Write an archive whose first member has other flags, another method or another packed size than it should."""
    count = ALWAYS_BYTES // 3072 + 1
    npz(
        folder,
        images=header((count, 32, 32, 3)) + bytes(count * 3072),
        labels=header((count,), "|u1") + bytes(count),
    )
    path = folder / "cifar10" / "test.npz"
    content = bytearray(path.read_bytes())
    local, listed = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    content[local + 6] |= flags
    content[listed + 8] |= flags
    if method is not None:
        content[local + 8] = content[listed + 10] = method
    if packed is not None:
        content[listed + 20 : listed + 24] = packed.to_bytes(4, "little")
    path.write_bytes(content)


def is_encrypted(folder: Path) -> None:
    patched(folder, flags=1)


def is_packed_in_an_unknown_way(folder: Path) -> None:
    patched(folder, method=14)  # LZMA, whose header may ask for a dictionary of 4 GiB


def lies_about_its_packed_size(folder: Path) -> None:
    patched(folder, packed=1 << 28)


def strips(**members: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "cifar10").mkdir()
        with zipfile.ZipFile(folder / "cifar10" / "cifar10_test_webp.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.webp", content)
            archive.writestr("labels_u1.npy", header((1,)) + bytes(1))

    return write


def picture(size: tuple[int, int], kind: str, mode: str = "1") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def python_batch(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "cifar-10-batches-py").mkdir()
        (folder / "cifar-10-batches-py" / "test_batch").write_bytes(content)

    return write


def global_call(name: str, arguments: bytes) -> bytes:
    """A pickle that calls a function of NumPy."""
    return b"\x80\x02c" + name.encode() + b"\n" + arguments + b"R."


SHAPE = b"(I100000000000\ntU\x01B"  # (10**11,), 'B'


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (claims_too_much, "its header claims 307,200,000,000,000 bytes, and it has 3,072"),
        (claims_too_little, "its header claims 3,072 bytes, and it has 6,144"),
        (is_a_bomb, "pack it without compression"),
        (holds_objects, "Object arrays cannot be loaded"),
        (is_encrypted, "images.npy is encrypted; write the archive without a password"),
        (is_packed_in_an_unknown_way, "images.npy is compressed by method 14; store or deflate it"),
        (lies_about_its_packed_size, "more than 200 times is refused"),
        (strips(a=picture((20000, 20000), "PNG")), "could be decompression bomb"),
        (strips(**dict.fromkeys("abc", picture((32, 1_600_000), "PNG"))), "more than 200 times the archive's size"),
        (strips(a=picture((32, 32), "EPS", "RGB")), "a.webp cannot be read (not an image)"),
        (python_batch(global_call("numpy.core.multiarray\n_reconstruct", b"(cnumpy\nndarray\n" + SHAPE + b"t")), ""),
        (python_batch(global_call("numpy\nndarray", b"(I100000000000\nt")), "not callable"),
        (python_batch(global_call("_codecs\nencode", b"(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibt")), "encoding"),
        (python_batch(b"\x80\x02]r\xff\xff\xff\x7f."), "number 2,147,483,647"),
        (python_batch(b"\x80\x04\x8e" + (HUGE).to_bytes(8, "little") + b"x."), "cannot be read"),
    ],
    ids=["claims-more", "claims-less", "bomb", "objects", "encrypted", "method", "lie", "strip-bomb", "strips",
         "program", "reconstruct", "ndarray", "codec", "memo", "length"],
)  # fmt: skip
def test_a_file_that_claims_more_than_it_holds_is_refused_in_little_memory(
    tmp_path: Path, write: Callable[[Path], None], says: str
) -> None:
    write(tmp_path)
    with watched() as memory, pytest.raises(DataError, match="cannot be read") as refused:
        load_cifar(DataSource(name="cifar10", root=str(tmp_path)), "test")
    assert says in str(refused.value)
    assert memory.grown_bytes < (1 << 30 if "200 times the archive" in says else 1 << 28)


def test_black_images_which_pack_very_well_are_read(tmp_path: Path) -> None:
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    (tmp_path / "cifar10").mkdir()
    np.savez_compressed(tmp_path / "cifar10" / "test.npz", images=images, labels=np.arange(1000) % 10)
    data = load_cifar(DataSource(name="cifar10", root=str(tmp_path)), "test")
    np.testing.assert_array_equal(data.images_NHWC, images)


def test_labels_of_an_archive_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.npy").write_bytes(header((HUGE,), "<i8") + bytes(8))
    with watched() as memory, pytest.raises(DataError, match=r"labels.npy cannot be read as an array"):
        load_archive(tmp_path)
    assert memory.grown_bytes < 1 << 26


@pytest.mark.parametrize("size", [(65500, 1), (1, 65500)])
def test_a_very_long_image_is_cropped_before_it_is_resized(size: tuple[int, int]) -> None:
    line = np.random.default_rng(0).integers(256, size=(1, 65500, 3), dtype=np.uint8)
    image = Image.fromarray(line if size[0] > 1 else line.transpose(1, 0, 2).copy())
    with watched() as memory:
        small = np.asarray(fit(image, 224))
    assert memory.grown_bytes < 1 << 27
    left = round(((224 * 65500) - 224) / 2) / 224
    expected = np.asarray(
        Image.fromarray(line[:, int(left) - 2 : int(left) + 4]).resize(
            (6 * 224, 224), Image.Resampling.BILINEAR
        )
    )
    start = round((left - int(left) + 2) * 224)
    expected = expected[:, start : start + 224]
    if size[0] == 1:
        expected = expected.transpose(1, 0, 2)
    np.testing.assert_allclose(small.astype(int), expected.astype(int), atol=2)


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_a_json_file_of_lists_inside_lists_is_refused(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * depth + "]" * depth, encoding="utf-8")
    with pytest.raises(ValueError, match="more than 64 lists or maps inside each other"):
        read_json(path)
    path.write_text(json.dumps({"a": [[{"b": [1, 2]}]]}), encoding="utf-8")
    assert read_json(path) == {"a": [[{"b": [1, 2]}]]}


def test_a_pipe_in_place_of_a_json_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(OSError, match="a pipe, a socket or a device"):
        read_json(tmp_path / "manifest.json")
