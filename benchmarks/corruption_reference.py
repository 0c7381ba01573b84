"""Define a reference for all 19 corruptions, which corrupts one image at a time.

`tasks.corruptions` is compared with it in speed (benchmarks/corruptions.py) and in results
(tests/unit/tasks/corruptions/test_reference.py). It is written from the definitions alone, in the style of the public
generators: NumPy in float64, scipy.ndimage, OpenCV, Pillow, loops in Python. From `tasks.corruptions` it takes only
the tables of constants and the photographs of frost. It draws different random numbers, so random corruptions agree
in distribution but not in bytes.

    noise, image property, digital   here
    blur                             corruption_reference_blur.py
    weather                          corruption_reference_weather.py

Source: definitions of Hendrycks & Dietterich, ICLR 2019, Appendix A.
"""

# H W C pixels; a Unit image is float64, 0..1

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from benchmarks.corruption_reference_blur import (
    Image_u8,
    Unit,
    defocus_blur,
    gaussian_blur,
    glass_blur,
    levels,
    motion_blur,
    smooth,
    zoom_blur,
)
from benchmarks.corruption_reference_weather import TableFacts, fog, frost, snow, spatter

Constants = Sequence[float]


def gaussian_noise(x: Unit, sigma: float, *, rng: np.random.Generator) -> Unit:
    """x + N(0, σ)."""
    return x + rng.normal(0, sigma, size=x.shape)


def shot_noise(x: Unit, photons: float, *, rng: np.random.Generator) -> Unit:
    """Poisson(x · λ) / λ."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Unit, amount: float, *, rng: np.random.Generator) -> Unit:
    """A fraction of the values turns white or black."""
    struck = rng.random(x.shape) < amount
    white = rng.random(x.shape) < 0.5
    return np.where(struck, white, x).astype(np.float64)


def speckle_noise(x: Unit, sigma: float, *, rng: np.random.Generator) -> Unit:
    """x + x · N(0, σ)."""
    return x + x * rng.normal(0, sigma, size=x.shape)


def brightness(x: Unit, added: float) -> Unit:
    """HSV, V + c."""
    hue, saturation, value = hsv(x)
    return rgb(hue, saturation, np.clip(value + added, 0, 1))


def saturate(x: Unit, factor: float, added: float) -> Unit:
    """HSV, S · c0 + c1."""
    hue, saturation, value = hsv(x)
    return rgb(hue, np.clip(saturation * factor + added, 0, 1), value)


def hsv(x: Unit) -> tuple[Unit, Unit, Unit]:
    """Return the hue in sixths of the circle (0 for grey), saturation and value, each [H, W]."""
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    value = x.max(axis=2)
    spread = value - x.min(axis=2)
    divisor = np.where(spread > 0, spread, 1)
    hue = np.where(
        value == red,
        (green - blue) / divisor,
        np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    return hue % 6, spread / np.where(value > 0, value, 1), value


def rgb(hue: Unit, saturation: Unit, value: Unit) -> Unit:
    """Invert `hsv`, by the sixth of the circle that the hue is in."""
    sixth = np.floor(hue)
    within = hue - sixth
    low = value * (1 - saturation)
    falling = value * (1 - saturation * within)
    rising = value * (1 - saturation * (1 - within))
    sixth = sixth.astype(int) % 6
    red = np.choose(sixth, [value, falling, low, low, rising, value])
    green = np.choose(sixth, [rising, value, value, falling, low, low])
    blue = np.choose(sixth, [low, low, rising, value, value, falling])
    return np.stack([red, green, blue], axis=2)


def contrast(x: Unit, factor: float) -> Unit:
    """(x - channel mean) · c + mean."""
    means: Unit = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * factor + means


def elastic_transform(
    x: Unit, amplitude: float, sigma: float, jitter: float, *, rng: np.random.Generator, facts: TableFacts
) -> Unit:
    """An affine map of three jittered points, then a smooth random displacement.

    The constants are in pixels at the table's image size, and scale with the image's size.
    """
    height, width = x.shape[:2]
    growth = min(height, width) / facts.native_size
    amplitude, sigma, jitter = amplitude * growth, sigma * growth, jitter * growth
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * (min(height, width) // 3)
    before = (corners + np.array([width // 2, height // 2])).astype(np.float32)
    after = (before + rng.uniform(-jitter, jitter, size=(3, 2))).astype(np.float32)
    matrix = cv2.getAffineTransform(before, after)
    x = np.asarray(cv2.warpAffine(x, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101), np.float64)
    dx = smooth(rng.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3) * amplitude
    dy = smooth(rng.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3) * amplitude
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    places = [rows + dy, columns + dx]
    return np.stack([map_coordinates(x[..., c], places, order=1, mode="reflect") for c in range(3)], axis=2)


def pixelate(x: Unit, scale: float) -> Unit:
    """Shrink to int(size · c) by a box filter, and enlarge again by a box filter."""
    height, width = x.shape[:2]
    picture = Image.fromarray(levels(x))
    picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)) / 255.0


def jpeg_compression(x: Unit, quality: float) -> Unit:
    """Encode as JPEG, and decode."""
    buffer = io.BytesIO()
    Image.fromarray(levels(x)).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer)) / 255.0


@dataclass(frozen=True)
class Reference:
    """A definition on [0, 1], wrapped as a corruption of uint8 images."""

    define: Callable[..., Unit]
    needs: tuple[Literal["rng", "facts"], ...] = ()

    def __call__(
        self, image_HWC_u8: Image_u8, constants: Constants, *, rng: np.random.Generator, facts: TableFacts
    ) -> Image_u8:
        offered = {"rng": rng, "facts": facts}
        x = np.asarray(image_HWC_u8, np.float64) / 255
        return levels(self.define(x, *constants, **{need: offered[need] for need in self.needs}))


REFERENCE: Mapping[str, Reference] = {
    "gaussian_noise": Reference(gaussian_noise, ("rng",)),
    "shot_noise": Reference(shot_noise, ("rng",)),
    "impulse_noise": Reference(impulse_noise, ("rng",)),
    "speckle_noise": Reference(speckle_noise, ("rng",)),
    "defocus_blur": Reference(defocus_blur),
    "glass_blur": Reference(glass_blur, ("rng",)),
    "motion_blur": Reference(motion_blur, ("rng",)),
    "zoom_blur": Reference(zoom_blur),
    "gaussian_blur": Reference(gaussian_blur),
    "snow": Reference(snow, ("rng",)),
    "frost": Reference(frost, ("rng", "facts")),
    "fog": Reference(fog, ("rng",)),
    "spatter": Reference(spatter, ("rng",)),
    "brightness": Reference(brightness),
    "contrast": Reference(contrast),
    "saturate": Reference(saturate),
    "elastic_transform": Reference(elastic_transform, ("rng", "facts")),
    "pixelate": Reference(pixelate),
    "jpeg_compression": Reference(jpeg_compression),
}


@functools.cache
def table_facts(table: str) -> TableFacts:
    """Return the image size and frost scale of a table, from the head of its file."""
    text = resources.files("tasks.corruptions").joinpath(f"severity_{table}.json").read_text("utf-8")
    head = json.loads(text)["_meta"]
    return TableFacts(native_size=int(head["image_size"]), frost_scale=float(head["frost_resize"]))
