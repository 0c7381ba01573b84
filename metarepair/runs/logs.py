"""The levels of our log lines, and handlers for our packages' loggers.

Every module has a logger of its own name. Nothing is printed unless a handler is set: the command line sets
`metarepair.console.lines.Console`; a program that imports MetaRepair can call `logging.basicConfig(level="INFO")`.

    WARNING   something is damaged or skipped, and the work continues
    RESULT    the outcome of a command: tables, and where the files are
    INFO      completed work, and progress every ten seconds
    DEBUG     progress every fifth of a second, for a terminal; the start of each stage
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from metarepair.own_packages import NAMES

RESULTS = 25
logging.addLevelName(RESULTS, "RESULT")


def print_on_worker() -> None:
    """Print our log lines to standard error in this Ray worker; Ray writes that to its log files."""
    for logger in (logging.getLogger(name) for name in NAMES):
        if not logger.handlers:
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)


@contextmanager
def handled(handler: logging.Handler, level: int) -> Iterator[None]:
    """Send our packages' log records of `level` and above to `handler` while the block runs."""
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
