"""Print log lines on the command line: progress to standard error, everything else to standard output.

On a terminal, the progress of all work under way is the last lines of the screen, redrawn in place.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from metarepair.runs import progress
from metarepair.runs.logs import RESULTS, handled

Verbosity = Literal["quiet", "usual", "verbose"]
LEVELS: dict[Verbosity, int] = {"quiet": RESULTS, "usual": logging.INFO, "verbose": logging.DEBUG}
CLEAR = "\x1b[J"  # from here to the end of the screen


class Console(logging.Handler):
    """Prints to the standard streams as they are when it is created.

    words: makes the text to print of that of a line. detailed: with the time and module of a line.
    """

    def __init__(self, words: Callable[[str], str] = str, *, detailed: bool = False) -> None:
        super().__init__()
        self._words = words
        self._out, self._err = sys.stdout, sys.stderr
        self.terminal = self._err.isatty()
        self._under_way: dict[str, str] = {}  # the newest text of each piece of work, redrawn as one
        if detailed:
            self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line. Raises what the stream raises, since lost output ends the command."""
        step: progress.Step | None = getattr(record, "step", None)
        text = record.getMessage() if step is not None or record.levelno == RESULTS else self.format(record)
        text = self._words(text)
        if step is None:
            self._print_above(text)
        elif self.terminal:
            self._redraw(step, text)
        elif record.levelno > logging.DEBUG:
            print(text, file=self._err, flush=True)

    def _print_above(self, text: str) -> None:
        if self._under_way:
            self._write(self._to_first_line())
        print(text, file=self._out, flush=True)
        if self._under_way:
            self._write("\n".join(self._under_way.values()))

    def _redraw(self, step: progress.Step, text: str) -> None:
        """Show the newest text of `step.work`; its last text stays on the screen."""
        start = self._to_first_line()
        self._under_way.pop(step.work, None) if step.over else self._under_way.update({step.work: text})
        self._write(start + (text + "\n" if step.over else "") + "\n".join(self._under_way.values()))

    def _to_first_line(self) -> str:
        up = sum(text.count("\n") + 1 for text in self._under_way.values()) - 1
        return "\r" + (f"\x1b[{up}A" if up > 0 else "") + CLEAR

    def _write(self, text: str) -> None:
        self._err.write(text)
        self._err.flush()


@contextmanager
def printed(verbosity: Verbosity = "usual", words: Callable[[str], str] = str) -> Iterator[None]:
    """Print the log lines of our packages, each in the words that `words` makes of it, while the block runs.

    quiet: only results, warnings and errors. verbose: also debug lines, each with its time and module.
    """
    console, level = Console(words, detailed=verbosity == "verbose"), LEVELS[verbosity]
    before = progress.logger.level
    if console.terminal and verbosity != "quiet":
        progress.logger.setLevel(logging.DEBUG)
    try:
        with handled(console, level):
            yield
    finally:
        progress.logger.setLevel(before)
