"""Draw a contact sheet of one image under every corruption at every severity.

Rows are the 19 corruptions, grouped by category; columns are the unchanged image and severities 1 to 5.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from metarepair.runs.progress import Progress
from tasks.corruptions import CORRUPTIONS, corrupt
from tasks.corruptions.plugins import plugins_and_refusals
from tasks.corruptions.severity import SEVERITIES, TABLES, load_table, severity_table
from tasks.corruptions.shapes import MIN_SIZE
from tasks.datasets.images import UnreadableImageError, safe_formats, to_rgb
from tasks.errors import ConfigError, DataError
from tasks.records import Pixels
from tasks.storage.paths import require_regular, writing

# Pixels of a tile's longer side: small images are enlarged to TILE, large ones shrunk to LARGEST_TILE.
TILE, LARGEST_TILE = 128, 224
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
SHEET_SIDE = 500  # pixels of the corrupted image's longer side; a tile shows it at less than half that size
GAP, LABEL_WIDTH, HEADER = 3, 170, 24
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


def describe_corruptions(table: str = "cifar") -> str:
    """Return a line for each corruption: name, short name, category, and the constants of severities 1 to 5.

    Those of other packages follow, with their packages; a broken plugin has a line that says so.
    """
    constants = severity_table(table)
    lines = [f"{'corruption':18s} {'short':5s} {'category':15s} severities 1 to 5 (table {table})"]
    for c in CORRUPTIONS.values():
        doses = "  ".join("/".join(f"{value:g}" for value in row) for row in constants[c.name])
        lines.append(f"{c.name:18s} {c.short:5s} {c.category:15s} {doses}")
    plugins, refused = plugins_and_refusals()
    for plugin in plugins:
        rows = plugin.constants.get(table)
        doses = "no constants" if rows is None else "  ".join("/".join(f"{v:g}" for v in row) for row in rows)
        lines.append(f"{plugin.name:18s} {'':5s} {plugin.category:15s} {doses} (of {plugin.requirement})")
    return "\n".join([*lines, *refused])


def table_for(height: int, width: int) -> str:
    """Return the name of the table whose image size is nearest, as a ratio, to the shorter side."""
    return min(TABLES, key=lambda table: abs(np.log(min(height, width) / load_table(table).native_size)))


def write_contact_sheet(image_path: Path, out: Path, *, table: str | None = None, seed: int = 0) -> str:
    """Write the sheet as PNG or JPEG, by the ending of `out`; return a message about it.

    A large image is shrunk first. Progress goes to stderr.
    Raises DataError if the image cannot be read, ConfigError for any other ending.
    """
    check_ending(out, "--out")
    if _same_file(out, image_path):
        raise ConfigError(f"--out {out} is the image itself; name another file for the sheet")
    given_HWC = load_rgb(image_path)
    image_HWC = shrunk(given_HWC)
    table = table_for(*image_HWC.shape[:2]) if table is None else table
    progress = Progress("corruptions", len(CORRUPTIONS) * len(SEVERITIES), "pictures")
    sheet = contact_sheet(image_HWC, table=table, seed=seed, progress=progress)
    save_sheet(sheet, out, "--out", quality=92)
    text = f"Severity constants: table {table}. Written to {out}"
    if image_HWC.shape == given_HWC.shape:
        return text
    sizes = [f"{width}x{height}" for height, width in (given_HWC.shape[:2], image_HWC.shape[:2])]
    return f"The image was shrunk from {sizes[0]} to {sizes[1]} pixels before it was corrupted. {text}"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of the paths does not exist or cannot exist
        return False


def shrunk(image_HWC: Pixels) -> Pixels:
    """Return the image shrunk to `SHEET_SIDE` pixels on its longer side, or unchanged if it is no larger.

    If the shorter side would become too short for the corruptions, the image is shrunk less.
    """
    height, width = image_HWC.shape[:2]
    scale = max(SHEET_SIDE / max(height, width), MIN_SIZE / min(height, width))
    if scale >= 1:
        return image_HWC
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.LANCZOS))


def check_ending(out: Path, option: str) -> None:
    """Check that the sheet's format is supported, before anything is read. Raises ConfigError naming the option."""
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{option} {out} ends in neither .png nor .jpg; use one of these endings")


def save_sheet(sheet: Image.Image, out: Path, option: str, *, quality: int = 75) -> None:
    """Save the sheet under a temporary name first, so that an existing sheet is only replaced by a complete one.

    quality: JPEG quality. Raises DataError naming the option or, if something else than a file is there, `out`.
    """
    try:
        with writing(out) as part:
            sheet.save(part, format=ENDINGS[out.suffix.lower()], quality=quality)
    except OSError as error:
        raise DataError(
            f"{option} {out} cannot be written ({error}). Name a file in a folder that you can write to."
        ) from error


def load_rgb(path: Path) -> Pixels:
    """Load an image file as RGB [H, W, 3] uint8, upright, with transparency on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(require_regular(path), formats=safe_formats()) as opened:
                upright = _eight_bits(ImageOps.exif_transpose(opened)).convert("RGBA")
    except FileNotFoundError as error:
        raise DataError(
            f"--image {path} does not exist. Give the path of a PNG, JPEG or WebP image."
        ) from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, UnreadableImageError) as error:
        raise DataError(
            f"--image {path} cannot be read as an image ({error}). Give a PNG, JPEG or WebP image."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"--image {path} is too large for a contact sheet ({error}). Shrink it.") from error
    paper = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    paper.alpha_composite(upright)
    return np.asarray(paper.convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert or refuse grey images of more than 8 bits, as data sets do; return other images unchanged."""
    return to_rgb(image) if image.mode == "F" or image.mode.startswith("I") else image


def contact_sheet(
    image_HWC: Pixels, *, table: str, seed: int = 0, progress: Progress | None = None
) -> Image.Image:
    """Return the sheet: a row for each corruption, a column for the clean image and each severity."""
    height, width = tile_size(image_HWC)
    columns = 1 + len(SEVERITIES)
    font, small = ImageFont.load_default(16), ImageFont.load_default(12)
    sheet = Image.new(
        "RGB",
        (LABEL_WIDTH + columns * (width + GAP), HEADER + len(CORRUPTIONS) * (height + GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("clean", *(f"severity {s}" for s in SEVERITIES))):
        draw.text((LABEL_WIDTH + column * (width + GAP), 4), title, fill=FAINT, font=small)
    for row, chosen in enumerate(CORRUPTIONS.values()):
        top = HEADER + row * (height + GAP)
        draw.text((6, top + height // 2 - 18), chosen.name, fill=INK, font=font)
        draw.text((6, top + height // 2 + 4), f"{chosen.short}, {chosen.category}", fill=FAINT, font=small)
        tiles = [image_HWC]
        for severity in SEVERITIES:
            tiles += list(
                corrupt(
                    image_HWC[None],
                    image_ids_B=[0],
                    corruption=chosen.name,
                    severity=severity,
                    seed=seed,
                    table=table,
                )
            )
            if progress:
                progress.advance(note=chosen.name)
        for column, tile in enumerate(tiles):
            scaling = Image.Resampling.NEAREST if height >= tile.shape[0] else Image.Resampling.LANCZOS
            scaled = Image.fromarray(tile).resize((width, height), scaling)
            sheet.paste(scaled, (LABEL_WIDTH + column * (width + GAP), top))
    return sheet


def tile_size(image_HWC: Pixels) -> tuple[int, int]:
    """Return the height and width of an image on a sheet."""
    height, width = image_HWC.shape[:2]
    longer = max(height, width)
    # An integer factor, so that enlarged pixels stay square.
    scale = max(1, TILE // longer) if longer <= LARGEST_TILE else LARGEST_TILE / longer
    return max(1, round(height * scale)), max(1, round(width * scale))
