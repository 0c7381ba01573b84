"""Draw rows of small images, each with a two-line caption, beside the name of the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metarepair.reports.contact_sheet import FAINT, GAP, INK, PAPER, TILE, tile_size
from tasks.records import Pixels

COLUMNS = 10
LABEL_WIDTH, CAPTION = 200, 32  # pixels: width of a row's name, height of the lines under an image


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """A row's name, a fainter note under it, and its images, each with a two-line caption."""

    name: str
    note: str
    images: Sequence[Pixels]
    captions: Sequence[tuple[str, str]]


def draw(rows: Sequence[SheetRow]) -> Image.Image:
    """Return the sheet. Small images are enlarged by an integer factor, so that their pixels stay square."""
    height, width = tile_size(next(row.images[0] for row in rows if row.images))
    columns = max(len(row.images) for row in rows)
    step_x, step_y = max(width, TILE) + GAP, height + CAPTION + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * step_x, GAP + len(rows) * step_y), PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(12)
    for line, row in enumerate(rows):
        top = GAP + line * step_y
        pen.text((6, top + height // 2 - 18), row.name, fill=INK, font=font)
        pen.text((6, top + height // 2 + 4), row.note, fill=FAINT, font=small)
        for column, (image_HWC, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            left = LABEL_WIDTH + column * step_x
            tile_height, tile_width = tile_size(image_HWC)
            scaling = Image.Resampling.NEAREST if tile_height >= len(image_HWC) else Image.Resampling.LANCZOS
            picture = Image.fromarray(np.ascontiguousarray(image_HWC).squeeze())
            sheet.paste(picture.resize((tile_width, tile_height), scaling), (left, top))
            lines = "\n".join(_cut(text, small, step_x - GAP) for text in caption)
            pen.text((left, top + height + 1), lines, fill=FAINT, font=small, spacing=2)
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, cut to at most `width` pixels."""
    while font.getlength(text) > width:
        text = text[:-1]
    return text
