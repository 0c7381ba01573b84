"""Test that a command which logs nothing for a while says that it is still at work."""

from __future__ import annotations

import logging
import threading

import pytest

from metarepair.runs.heartbeat import heartbeat

logger = logging.getLogger("metarepair.test_heartbeat")


def test_silence_is_broken_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    said = threading.Event()

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - that it is called counts
            said.set()

    handler, own = Said(), logging.getLogger("metarepair.runs.heartbeat")
    own.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "metarepair"), heartbeat("fix", planned_s=600, every_s=0.01):
            assert said.wait(30)
    finally:
        own.removeHandler(handler)
    assert "fix: at work for" in caplog.text
    assert "left" in caplog.text


def test_what_speaks_for_itself_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogger("metarepair").handlers[:]
    with caplog.at_level(logging.INFO, "metarepair"), heartbeat("fix", planned_s=600, every_s=3600):
        logger.info("a line")
    assert [record.getMessage() for record in caplog.records] == ["a line"]
    assert logging.getLogger("metarepair").handlers == before
