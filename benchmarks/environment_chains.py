"""Change clean images as cameras and programs do: by compression, by colour, by geometry.

The strengths were chosen before any repair of these environments was tried, and have not been changed since
(benchmarks/README.md says by what they were chosen).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from tasks.keys import keyed_generator
from tasks.records import Pixels

# H W C pixels

Range = tuple[float, float]
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How much each step changes a photograph. Of a pair, each photograph has a value in between (see `Draws`).

    Lengths are shares of the image's side, so that images of other sizes change alike.
    """

    # compression
    first_quality: int = 15  # JPEG quality, 1 to 100; colours at half the resolution (4:2:0)
    shrunk_side: Range = (0.6, 0.85)  # side after shrinking, over the side before
    last_quality: int = 40  # JPEG quality, 1 to 100; 4:2:0
    # colour
    warmth_stops: Range = (
        0.4,
        0.9,
    )  # red over blue, in powers of two: half of it raises red, half lowers blue
    gamma: Range = (1.4, 2.0)  # exponent of values in [0, 1]; above 1 darkens
    vignette: Range = (0.4, 0.8)  # light lost in the corners, as a share; grows with the squared radius
    colour_quality: int = 60  # JPEG quality, 1 to 100; 4:2:0
    # geometric
    tilt: Range = (0.0, 0.16)  # how far each corner moves inwards, in x and in y, over the side
    turn_degrees: Range = (-10.0, 10.0)  # rotation about the centre; positive is clockwise
    blur: Range = (
        0.012,
        0.025,
    )  # standard deviation of the Gaussian over the longer side: 0.4 to 0.8 px of 32
    geometric_quality: int = 95  # JPEG quality, 1 to 100, of the written file; full colour resolution (4:4:4)


class Draws:
    """The values of one photograph: half of each is its group's, half its own, so that groups differ.

    Photographs of one device or day then resemble each other, as a user's do.
    """

    def __init__(self, recipe: str, *, seed: int, group: int, image_id: int) -> None:
        self._group = keyed_generator("environment group", recipe, seed, group)
        self._own = keyed_generator("environment photograph", recipe, seed, image_id)

    def between(self, limits: Range) -> float:
        """Draw the next value: the mean of two uniform draws between `limits`, one of the group and one of its own."""
        low, high = limits
        return low + (high - low) * (self._group.random() + self._own.random()) / 2


def compress(image_HWC: Pixels, draws: Draws, strengths: Strengths) -> Pixels:
    """Save as JPEG, and make smaller and larger again; the written file is the last JPEG. uint8 [H, W, 3], RGB."""
    height, width = image_HWC.shape[:2]
    share = draws.between(strengths.shrunk_side)
    small = (max(1, round(share * width)), max(1, round(share * height)))
    first = _decoded(jpeg(image_HWC, strengths.first_quality))
    shrunk = cv2.resize(first, small, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def change_colours(image_HWC: Pixels, draws: Draws, strengths: Strengths) -> Pixels:
    """Apply white balance, gamma and vignette. uint8 [H, W, 3], RGB."""
    height, width = image_HWC.shape[:2]
    warmth = draws.between(strengths.warmth_stops)
    gamma, lost = draws.between(strengths.gamma), draws.between(strengths.vignette)
    values = image_HWC / 255.0 * [2 ** (warmth / 2), 1.0, 2 ** (-warmth / 2)]
    values = values.clip(0, 1) ** gamma
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    values *= (1 - lost * (x**2 + y**2) / 2)[:, :, None]
    return np.rint(255 * values).astype(np.uint8)


def move_camera(image_HWC: Pixels, draws: Draws, strengths: Strengths) -> Pixels:
    """Look from the side, turn, and blur. uint8 [H, W, 3], RGB. Beyond its border the image is mirrored."""
    height, width = image_HWC.shape[:2]
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)  # in halves of the side, from the centre
    moved = np.array([draws.between(strengths.tilt) for _ in range(8)]).reshape(4, 2)
    angle = np.deg2rad(draws.between(strengths.turn_degrees))
    # A photograph that appears turned clockwise was seen through a frame that was turned the other way.
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    half, centre = np.array([width, height]) / 2, np.array([width - 1, height - 1]) / 2
    frame = (corners * (1 - 2 * moved) * half) @ turn + centre
    outline = corners * half + centre
    seen = cv2.warpPerspective(
        np.ascontiguousarray(image_HWC),
        cv2.getPerspectiveTransform(frame.astype(np.float32), outline.astype(np.float32)),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    sigma = draws.between(strengths.blur) * max(height, width)
    return np.asarray(
        cv2.GaussianBlur(seen, (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT_101), np.uint8
    )


RECORDED = Strengths()


def jpeg(
    image_HWC: Pixels,
    quality: int,
    subsampling: str = "4:2:0",
    *,
    mode: str = "RGB",
    orientation: int | None = None,
) -> bytes:
    """Encode uint8 pixels [H, W, 3] as JPEG in the colour mode RGB or CMYK, with this EXIF orientation if any."""
    stream, exif = io.BytesIO(), Image.Exif()
    picture = Image.fromarray(np.ascontiguousarray(image_HWC)).convert(mode)
    if orientation is None:
        picture.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    else:
        exif[ORIENTATION] = orientation
        picture.save(stream, "JPEG", quality=quality, subsampling=subsampling, exif=exif)
    return stream.getvalue()


def _decoded(content: bytes) -> Pixels:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))
