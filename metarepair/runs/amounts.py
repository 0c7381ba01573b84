"""Read an amount of time, or of anything else, from a text: a number and its unit."""

from __future__ import annotations

import re

_SECONDS = {"m": 60, "min": 60, "h": 3600}  # of units that are read as seconds
_AMOUNT = re.compile(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*([a-z-]*)\s*")


def read_amount(text: str) -> tuple[float, str] | None:
    """The number, 0 or more, and the unit in `90s`, `1e5images` or `90`; None for a text of another form.

    Minutes (`m`, `min`) and hours (`h`) become seconds (`s`).
    """
    found = _AMOUNT.fullmatch(text)
    if found is None:
        return None
    return float(found[1]) * _SECONDS.get(found[2], 1), "s" if found[2] in _SECONDS else found[2]
