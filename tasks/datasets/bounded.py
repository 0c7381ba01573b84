"""Read arrays, archives and pickles of other people's files without giving them more memory than they can fill.

A header of a few bytes may claim 10^11 numbers, and a small archive may hold hundreds of gigabytes of zeros. What a
file claims is compared with its size before anything is allocated.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as NumPy and PyTorch write them
_ENCRYPTED = 0x41  # either kind of encryption, in a member's flags
RATIO = 200  # how many times its packed size the members of an archive may have
ALWAYS_BYTES = 1 << 28  # that they may have, however small they are packed
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file, mapped into memory. Raises OSError, ValueError, EOFError or TypeError."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member of a zip archive. Raises KeyError, ValueError if it is too large, BadZipFile."""
    return archive.read(check_member(archive, name))


def read_array_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The array of an .npy member of a zip archive.

    Raises KeyError, BadZipFile, and ValueError if the member is too large, holds Python objects, or does not have the
    size that its header claims.
    """
    info = check_member(archive, name)
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"its format {version} is not 1.0 or 2.0")
        shape, _, dtype = _HEADERS[version](stream)
        claimed, there = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
    if claimed != there and not dtype.hasobject:
        raise ValueError(f"its header claims {claimed:,} bytes, and it has {there:,}")
    with archive.open(info) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


def check_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The entry of a member.

    Raises KeyError, and ValueError if it would be unpacked to far more than its size, or cannot be unpacked here.
    """
    info = archive.getinfo(name)
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted; write the archive without a password")
    if info.compress_type not in _PACKED:
        raise ValueError(f"{name} is compressed by method {info.compress_type}; store or deflate it")
    packed = min(
        info.compress_size, archive.start_dir
    )  # no member is larger than what is before the list of them
    if info.file_size > max(ALWAYS_BYTES, RATIO * packed):
        raise ValueError(
            f"it has {info.file_size:,} bytes and is packed into {packed:,}; more than {RATIO} times is "
            "refused, so pack it without compression"
        )
    return info


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise ValueError if a member may not be read, or if all of them would be unpacked to far more than their size."""
    total = sum(check_member(archive, name).file_size for name in archive.namelist())
    if total > max(ALWAYS_BYTES, RATIO * archive.start_dir):
        raise ValueError(
            f"its members have {total:,} bytes and are packed into {archive.start_dir:,}; more than {RATIO} times is "
            "refused, so pack it without compression"
        )


def check_pickle(content: bytes) -> None:
    """Raise ValueError if a pickle asks for more memory than its size. Nothing is built.

    The unpickler's table of remembered objects grows to the largest number in the pickle, whatever it is.
    """
    try:
        for operation, argument, _ in pickletools.genops(content):
            if "PUT" in operation.name and int(argument or 0) > len(content):
                raise ValueError(f"it remembers an object by the number {argument:,}")
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not a whole pickle ({error})") from error


def empty_array(*_: Any) -> np.ndarray:
    """An array of no numbers, which a pickle then fills with as many as it holds."""
    return np.ndarray.__new__(np.ndarray, (0,), "b")
