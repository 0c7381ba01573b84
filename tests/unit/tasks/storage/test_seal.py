"""Check that a part counts as present only with the identity and the bytes that it was sealed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tasks.storage.paths import Place, write_text
from tasks.storage.sealed_parts import SUFFIX, is_sealed, is_untouched, missing_parts, seal, seal_of


@dataclass(frozen=True)
class Piece:
    path: Place
    number: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"piece": self.number, "rows": [0, self.number]}

    def make(self, content: str = "content") -> Piece:
        write_text(self.path, f"{content} {self.number}")
        seal(self.path, self.identity)
        return self


def made(root: Place, count: int = 3) -> list[Piece]:
    return [Piece(root / f"part-{n}", n).make() for n in range(count)]


def test_a_sealed_part_is_present(root: Place, caplog: pytest.LogCaptureFixture) -> None:
    assert missing_parts(made(root)) == []
    assert caplog.messages == []


def test_a_part_that_was_never_made_is_missing_without_a_log_line(
    root: Place, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = [*made(root), Piece(root / "part-9", 9)]
    assert missing_parts(pieces) == pieces[-1:]
    assert caplog.messages == []


@pytest.mark.parametrize("place", [0, 3, 8])
def test_any_changed_byte_breaks_the_seal(root: Place, place: int, caplog: pytest.LogCaptureFixture) -> None:
    pieces = made(root)
    content = bytearray(pieces[1].path.read_bytes())
    content[place] ^= 1
    pieces[1].path.write_bytes(bytes(content))
    assert missing_parts(pieces) == [pieces[1]]
    (line,) = caplog.messages
    assert str(pieces[1].path) in line
    assert not is_untouched(pieces[1].path)


def test_swapped_parts_are_missing(root: Place) -> None:
    pieces = made(root, 2)
    contents = [(p.path.read_bytes(), seal_of(p.path).read_bytes()) for p in pieces]
    for piece, (content, sealed) in zip(pieces, reversed(contents), strict=True):
        piece.path.write_bytes(content)
        seal_of(piece.path).write_bytes(sealed)
    assert missing_parts(pieces) == pieces
    assert is_untouched(pieces[0].path)


@pytest.mark.parametrize("content", ["", "{", "3", "null", "[]", '{"identity": 1}'])
def test_a_damaged_seal_does_not_count(root: Place, content: str) -> None:
    (piece,) = made(root, 1)
    write_text(seal_of(piece.path), content)
    assert not is_sealed(piece.path, piece.identity)
    assert not is_untouched(piece.path)


def test_a_part_without_its_seal_is_missing(root: Place) -> None:
    (piece,) = made(root, 1)
    seal_of(piece.path).unlink()
    assert missing_parts([piece]) == [piece]
    assert seal_of(piece.path).name == piece.path.name + SUFFIX
