"""The 19 published corruptions: their names, short names, categories and functions.

Source: Hendrycks & Dietterich, ICLR 2019 (names); the paper that MetaRepair reproduces (short names and categories).
"""

# B images in a batch, H W C pixels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tasks.corruptions import blur, digital, image_property, noise, weather
from tasks.corruptions.severity import Dose, Levels, constants_at
from tasks.records import Pixels

Category = Literal["noise", "blur", "weather", "image_property", "digital"]
Apply = Callable[[Pixels, Dose], Pixels | Levels]


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    Attributes:
        name: the published name, such as `gaussian_noise`.
        short: the paper's short name, such as `GN`.
        category: the paper's category: noise, blur, weather, image_property or digital.
        apply: a function of uint8 images [B, H, W, C] and a `Dose`. It returns, in the same shape, uint8 pixels, or
            float32 grey levels on the scale 0..255 that `corrupt` clips and truncates.

    Source: Hendrycks & Dietterich, ICLR 2019 (names); the reproduced paper (short names and categories).
    """

    name: str
    short: str
    category: Category
    apply: Apply

    def constants_at(self, table: str, *, severity: int) -> tuple[float, ...]:
        """The published constants at one severity. Raises ConfigError for an unknown table or severity."""
        return constants_at(table, corruption=self.name, severity=severity)


# All corruptions by published name, grouped by category.
CORRUPTIONS: dict[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("gaussian_noise", "GN", "noise", noise.gaussian_noise),
        Corruption("shot_noise", "SN", "noise", noise.shot_noise),
        Corruption("impulse_noise", "IN", "noise", noise.impulse_noise),
        Corruption("speckle_noise", "SKN", "noise", noise.speckle_noise),
        Corruption("defocus_blur", "DB", "blur", blur.defocus_blur),
        Corruption("glass_blur", "GB", "blur", blur.glass_blur),
        Corruption("motion_blur", "MB", "blur", blur.motion_blur),
        Corruption("zoom_blur", "ZM", "blur", blur.zoom_blur),
        Corruption("gaussian_blur", "GAB", "blur", blur.gaussian_blur),
        Corruption("snow", "SW", "weather", weather.snow),
        Corruption("frost", "FR", "weather", weather.frost),
        Corruption("fog", "FOG", "weather", weather.fog),
        Corruption("spatter", "SP", "weather", weather.spatter),
        Corruption("brightness", "BR", "image_property", image_property.brightness),
        Corruption("contrast", "CT", "image_property", image_property.contrast),
        Corruption("saturate", "SA", "image_property", image_property.saturate),
        Corruption("elastic_transform", "ET", "digital", digital.elastic_transform),
        Corruption("pixelate", "PIX", "digital", digital.pixelate),
        Corruption("jpeg_compression", "JPEG", "digital", digital.jpeg_compression),
    )
}

# By published and short name, in lower case.
BY_LOWER_NAME = {key.lower(): c for c in CORRUPTIONS.values() for key in (c.name, c.short)}
