"""Make the command line's standard output and standard error safe to print to, whatever they are connected to.

Three kinds of streams need care:
    an encoding that lacks our characters (Latin-1, ASCII, EUC-JP)   plain characters are printed instead
    a closed stream (`>&-`)                                          nothing is printed, the work is done
    a stream that cannot be written (a closed pipe, a full disk)     the command ends, and keeps its work
UTF-8 streams are left as they are.
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
PIPE_CLOSED = 141  # 128 + SIGPIPE: a shell's exit code for a program whose reader closed the pipe
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
    """A standard stream cannot be written. Ends the command like Ctrl-C; no code takes it for a failed stage."""

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"the {name} cannot be written: {error.strerror}")
        self.reader_left = error.errno == errno.EPIPE


class _Watched:
    """A text stream that raises OutputLost if writing fails."""

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
    """While the block runs, keep both standard streams open and able to take any text; they raise OutputLost."""
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
    """Flush both streams, to raise OutputLost now and not when the interpreter exits."""
    sys.stdout.flush()
    sys.stderr.flush()


def end_without(lost: OutputLost) -> int:
    """Discard the streams that cannot be written, and return the command's exit code."""
    code = PIPE_CLOSED
    if not lost.reader_left:
        code = 2
        with suppress(OutputLost):  # standard error may be the lost stream
            print(
                f"metarepair: {lost}. Make room there, or redirect the output elsewhere; then run the same command "
                "again to resume.",
                file=sys.stderr,
            )
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OutputLost:
            _discard(stream)
    return code


def _would_fail(stream: io.TextIOWrapper) -> bool:
    """Whether some character cannot be printed. An error handler that the user chose (PYTHONIOENCODING) is kept."""
    if codecs.lookup(stream.encoding).name == "utf-8":
        return stream.errors == "strict"  # a file name that is not UTF-8 fails there
    return stream.errors in ("strict", "backslashreplace", "surrogateescape")  # Python's own defaults


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    """Return ASCII in place of a character, such as `alpha` for α; an escape (`\\xe9`) if there is no such text."""
    if character in CHARACTERS:
        return CHARACTERS[character]
    script, _, letter = unicodedata.name(character, "").partition(" LETTER ")
    if script in ("GREEK SMALL", "GREEK CAPITAL") and " " not in letter:
        return letter.lower() if script == "GREEK SMALL" else letter.capitalize()
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _open_closed_streams() -> None:
    """Replace each closed standard stream by the null device.

    Otherwise the next opened file would get the stream's file number, and everything printed would end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _discard(stream: TextIO) -> None:
    """Send the stream's buffer and everything after it to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()
