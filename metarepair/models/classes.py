"""Compare a DNN's class names with those of the data set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tasks.errors import WeightsError


def stated_classes(module: nn.Module) -> tuple[str, ...] | None:
    """Return the class names that the module itself states (`classes` or `class_names`), in the order of its logits."""
    for attribute in ("classes", "class_names"):
        names = getattr(module, attribute, None)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def check_class_names(names: Sequence[str], classes: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return no note if the names agree, one note if some differ (accuracy on clean images will then decide).

    Raises WeightsError for a different number of classes, and for the same names in a different order.
    """
    if len(names) != len(classes):
        raise WeightsError(
            f"{where} names {len(names)} classes ({_some(names)}), the data set has {len(classes)} ({_some(classes)}). "
            "Give a DNN with this data set's classes, or set data.name to the DNN's data set."
        )
    ours, theirs = [_plain(name) for name in classes], [_plain(name) for name in names]
    differ = [i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    if not differ:
        return ()
    i = differ[0]
    if sorted(ours) == sorted(theirs):
        raise WeightsError(
            f"{where} has the data set's classes in another order: its class {i} is {names[i]!r}, the data set's is "
            f"{classes[i]!r} ({len(differ)} classes differ). Reorder the classifier's rows, or the data set's labels."
        )
    return (
        f"{where} names {len(differ)} of its classes differently from the data set: class {i} is {names[i]!r} there, "
        f"{classes[i]!r} in the data set",
    )


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
