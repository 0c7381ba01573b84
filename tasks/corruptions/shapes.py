"""Check the shape of a batch of images. The error for a recognised layout shows how to convert it."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import DataError

MIN_SIZE = 8
CHANNELS = (1, 3)


def check_shape(shape: Sequence[int]) -> None:
    """Raise DataError, with the remedy, unless the shape is [B, H, W, 3], [B, H, W, 1] or [B, H, W]."""
    good = len(shape) == 3 or (len(shape) == 4 and shape[3] in CHANNELS)
    small = len(shape) > 2 and shape[0] > 0 and min(shape[1:3]) < MIN_SIZE
    if good and not small:
        return
    instead = _instead(shape)
    if good and instead is None:
        raise DataError(
            f"images are {shape[1]}x{shape[2]} in a batch {list(shape)}; at least {MIN_SIZE}x{MIN_SIZE} is needed"
        )
    raise DataError(
        f"images have shape {list(shape)}; corruptions take a batch [B, H, W, 3] of RGB, or [B, H, W, 1] or [B, H, W] "
        f"of grey images{'' if instead is None else f': {instead}'}"
    )


def channels_first_note(shape: Sequence[int]) -> str:
    """For three grey images, which may be meant as one RGB image: how to give that image. Else an empty string."""
    if len(shape) != 3 or shape[0] != 3:
        return ""
    return (
        f". A shape {list(shape)} is a batch of three grey images; for one RGB image with channels first, give a batch "
        f"{[1, *shape[1:], 3]}: numpy.moveaxis(images, 0, -1)[None]"
    )


def _instead(shape: Sequence[int]) -> str | None:
    """What to give instead, if the shape can only be one image or has its channels elsewhere. Else `None`."""
    if len(shape) == 2 and min(shape) >= MIN_SIZE:
        return f"for one grey image, give a batch {[1, *shape]}: images[None]"
    if len(shape) == 3 and shape[2] in CHANNELS and min(shape[:2]) >= MIN_SIZE:
        return f"for one image, give a batch {[1, *shape]}: images[None]"
    if len(shape) != 4:
        return None
    count, first, second, last = shape
    if first in CHANNELS and min(second, last) >= MIN_SIZE:
        return (
            f"for channels first, give a batch {[count, second, last, first]}: numpy.moveaxis(images, 1, -1)"
        )
    if last == 4 and min(first, second) >= MIN_SIZE:
        return f"for RGB with transparency, give a batch {[*shape[:3], 3]}: images[..., :3]"
    return None
