"""Distribute tests over processes: a file of tests on Ray goes to one process, other tests go one by one.

Files on Ray come first, since they take longest. Keeping a file in one process creates its module fixtures (a head
node, a search) only once. pytest-xdist's own groups cannot do this: version 3.8 stores the group where pytest 9.2 no
longer reads it.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

ON_RAY = "tests/distributed/"


def scope_of(nodeid: str) -> str:
    """Return a test's scope; tests with an equal scope run in one process."""
    return nodeid.partition("::")[0] if nodeid.startswith(ON_RAY) else nodeid


class RayFilesFirst(LoadScopeScheduling):
    """The scheduler that `pytest -n 2 --dist loadgroup` uses here."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = (
            False  # otherwise files with many tests, which are short, come first
        )
        super().schedule()
