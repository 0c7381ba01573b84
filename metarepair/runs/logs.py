"""The levels of our log lines, and the loggers that print them.

Every module has a logger of its own name. Nothing is printed unless a handler is set: the command line sets
`metarepair.console.lines.Console`; a program that imports MetaRepair uses `logging.basicConfig(level="INFO")`, say.

    WARNING   something is damaged or passed over, and the work goes on
    RESULT    what a command is run for: tables, and where the files are
    INFO      what is done, and the progress every ten seconds
    DEBUG     the progress every fifth of a second, for a terminal; stages that begin
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.own_packages import NAMES

RESULTS = 25
logging.addLevelName(RESULTS, "RESULT")


def print_on_worker() -> None:
    """Have this process, a worker of Ray's, print our lines to standard error, which Ray writes to its log files."""
    for logger in (logging.getLogger(name) for name in NAMES):
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)


@contextmanager
def handled(handler: logging.Handler, level: int) -> Iterator[None]:
    """Send the lines of our packages from `level` on to `handler` while the block runs."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)
