"""Make the command line's standard output and standard error safe to print to, whatever they are connected to.

Three kinds of streams need care:
    one with an encoding that lacks our characters (Latin-1, ASCII, EUC-JP)   plain characters are printed instead
    one that is closed (`>&-`)                                                nothing is printed, the work is done
    one that cannot be written (a closed pipe, a full disk)                   the command ends, and keeps its work
UTF-8 streams print what they always did.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

PLAIN = "metarepair.plain"
PIPE_CLOSED = 141  # 128 + SIGPIPE: how a shell shows any program whose reader went away
CHARACTERS = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "×": "x",
    "·": "*",
    "±": "+/-",
    "°": " degrees",
    "²": "^2",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "√": "sqrt",
    "∞": "inf",
    "∂": "d",
    "…": "...",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "\N{MICRO SIGN}": "u",
    "\N{NO-BREAK SPACE}": " ",
}


class OutputLost(BaseException):
    """A standard stream cannot be written. Ends the command as Ctrl-C does: nothing takes it for a failed stage."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"the {name} cannot be written: {error.strerror}")
        self.reader_left = error.errno == errno.EPIPE


class _Watched:
    """A text stream that raises OutputLost where writing fails."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        with self._watching():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._watching():
            self._stream.flush()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputLost(self._name, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def watched_streams() -> Iterator[None]:
    """Both standard streams while the block runs: open, able to take any text, and raising OutputLost."""
    _open_closed_streams()
    codecs.register_error(PLAIN, _in_plain_characters)
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper) and _would_fail(stream):
            stream.reconfigure(errors=PLAIN)
    sys.stdout = cast(TextIO, _Watched(before[0], "standard output"))
    sys.stderr = cast(TextIO, _Watched(before[1], "standard error"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush_streams() -> None:
    """Raise OutputLost now for what the interpreter could only complain about at its very end."""
    sys.stdout.flush()
    sys.stderr.flush()


def end_without(lost: OutputLost) -> int:
    """Give up the streams that cannot be written, and return the command's exit code."""
    code = PIPE_CLOSED
    if not lost.reader_left:
        code = 2
        with suppress(OutputLost):  # standard error may be the one
            print(
                f"metarepair: {lost}. Make room where it goes, or send it elsewhere; then run the same command again "
                "to go on from there.",
                file=sys.stderr,
            )
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OutputLost:
            _discard(stream)
    return code


def _would_fail(stream: io.TextIOWrapper) -> bool:
    """Whether a character can end the command. An error handler that the user chose (PYTHONIOENCODING) stays."""
    if codecs.lookup(stream.encoding).name == "utf-8":
        return stream.errors == "strict"  # a file name that is no UTF-8 fails there
    return stream.errors in ("strict", "backslashreplace", "surrogateescape")  # what Python sets by itself


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    """ASCII in place of a character: `alpha` for α. An escape (`\\xe9`) where no other text means the same."""
    if character in CHARACTERS:
        return CHARACTERS[character]
    script, _, letter = unicodedata.name(character, "").partition(" LETTER ")
    if script in ("GREEK SMALL", "GREEK CAPITAL") and " " not in letter:
        return letter.lower() if script == "GREEK SMALL" else letter.capitalize()
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _open_closed_streams() -> None:
    """Put the null device in the place of each standard stream that is closed.

    Otherwise the next file that is opened gets the stream's number, and what others print ends in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _discard(stream: TextIO) -> None:
    """Send what the stream still holds, and all that follows, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()
