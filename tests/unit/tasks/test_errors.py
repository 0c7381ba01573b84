"""Check that an error states what was observed: a file that cannot be opened is not called damaged."""

from __future__ import annotations

import errno

from tasks.errors import unreadable


def test_a_file_that_cannot_be_opened_is_not_called_damaged() -> None:
    assert unreadable("a.json", PermissionError(errno.EACCES, "Permission denied")) == (
        "a.json cannot be read (Permission denied)"
    )
    assert unreadable("a.json", KeyError("targets")) == "a.json is damaged (it lacks 'targets')"
    assert unreadable("a.json", ValueError("it is no list")) == "a.json is damaged (it is no list)"
