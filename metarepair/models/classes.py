"""Two lists of class names in, agreement out: what a DNN calls its classes, held against the data set's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tasks.errors import WeightsError


def stated_classes(module: nn.Module) -> tuple[str, ...] | None:
    """The names that the module itself states, in the order of its logits: its `classes` or `class_names`."""
    for attribute in ("classes", "class_names"):
        names = getattr(module, attribute, None)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def check_class_names(names: Sequence[str], classes: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Nothing when the names agree; a note where they are other words, which the accuracy on clean images judges.

    Raises WeightsError for another number of classes, and for the same names in another order.
    """
    if len(names) != len(classes):
        raise WeightsError(
            f"{where} names {len(names)} classes ({_some(names)}), the data set has {len(classes)} ({_some(classes)}). "
            "Bring a DNN of this data set's classes, or the data set of this DNN (data.name)."
        )
    ours, theirs = [_plain(name) for name in classes], [_plain(name) for name in names]
    differ = [i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    if not differ:
        return ()
    i = differ[0]
    if sorted(ours) == sorted(theirs):
        raise WeightsError(
            f"{where} has the data set's classes in another order: its class {i} is {names[i]!r}, the data set's is "
            f"{classes[i]!r} ({len(differ)} such). Reorder the classifier's rows, or the data set's labels."
        )
    return (
        f"{where} calls {len(differ)} of its classes otherwise than the data set: class {i} is {names[i]!r} there, "
        f"{classes[i]!r} here",
    )


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
