"""Share the tests out between processes: a file of tests on Ray goes to one process, other tests one by one.

The files on Ray come first, since they are the longest; a file's module fixtures (a head node, a search) are then made
once. pytest-xdist's own groups cannot do it: version 3.8 writes a group into a place that pytest 9.2 no longer reads.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

ON_RAY = "tests/distributed/"


def scope_of(nodeid: str) -> str:
    """Tests with an equal scope run in one process."""
    return nodeid.partition("::")[0] if nodeid.startswith(ON_RAY) else nodeid


class RayFilesFirst(LoadScopeScheduling):
    """The scheduling of `pytest -n 2 --dist loadgroup` here."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = (
            False  # else files with many tests come first, which are the short ones
        )
        super().schedule()
