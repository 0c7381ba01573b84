"""Find the corruptions of other packages by the entry points of the group `metarepair.corruptions`.

An entry point is named after its corruption, so a plugin is found without loading any other: a broken one stops only
the runs that name it. A plugin is checked and tried on three small images when it is first used.
"""

# B images in a batch, H W C pixels

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from tasks.corruptions.published import BY_LOWER_NAME, Apply
from tasks.corruptions.severity import (
    SEVERITIES,
    TABLES,
    Dose,
    FiveSeverities,
    Levels,
    check_severity,
    load_table,
)
from tasks.errors import ConfigError, UserError, unknown_name
from tasks.keys import iter_keyed_generators, keyed_generator
from tasks.records import Pixels

GROUP = "metarepair.corruptions"
SETTING = "corruption_plugins"  # in manifests
NAME = re.compile("[a-z][a-z0-9_]*")  # names are also names of folders
FIELDS = ("name", "category", "constants", "apply")
REMEDY = "Fix or uninstall its package."
TRIAL_SHAPE = (3, 32, 32, 3)


@dataclass(frozen=True, kw_only=True)
class CorruptionPlugin:
    """A corruption of another package, which names it under the entry point `metarepair.corruptions`.

    Attributes:
        name: lower-case letters, digits and `_`, with a letter first; also the name of the entry point. It is neither a
            published or short name nor that of another plugin.
        category: noise, blur, weather, image_property, digital, or a word of your own, of the same letters.
        constants: the constants of severities 1 to 5, one tuple for each severity, all of one length. Either one such
            list for all tables, or a dict of lists by table (cifar, tinyimagenet, imagenet; those left out are refused
            when they are asked for).
        apply: a function of uint8 images [B, H, W, C], C = 1 or 3, which are read-only, and a `Dose`. It returns, in
            the same shape, uint8 pixels, or float32 grey levels on the scale 0..255 that are then clipped and
            truncated. It draws only from `dose.rngs`, all numbers of an image before those of the next, and never mixes
            images.

    Example:
        >>> darker = CorruptionPlugin(
        ...     name="darker",
        ...     category="image_property",
        ...     constants=[(20,), (40,), (60,), (80,), (100,)],
        ...     apply=lambda images, dose: images - images.clip(max=int(dose.constants[0])),
        ... )
        >>> darker.name
        'darker'
    """

    name: str
    category: str
    constants: Sequence[Sequence[float]] | Mapping[str, Sequence[Sequence[float]]]
    apply: Apply


@dataclass(frozen=True, kw_only=True)
class InstalledPlugin:
    """A plugin that has passed the checks; `constants` by table, `requirement` such as `mypackage==1.2`."""

    name: str
    category: str
    constants: Mapping[str, FiveSeverities]
    function: Apply
    source: str
    requirement: str

    def constants_at(self, table: str, *, severity: int) -> tuple[float, ...]:
        """The constants at one severity. Raises ConfigError for a severity outside 1..5 or a table that it lacks."""
        check_severity(severity)
        if table not in self.constants:
            raise ConfigError(
                f"{self.source} has no constants for the table {table!r}, only for {', '.join(self.constants)}. Set "
                "data.corruption_table to one of these, or choose another corruption."
            )
        return self.constants[table][int(severity) - 1]

    def apply(self, images_BHWC: Pixels, dose: Dose) -> Pixels | Levels:
        """Call the plugin's function on read-only images; the result is a copy.

        Raises ConfigError if the function raises, or returns anything but uint8 or finite float32 of the same shape.
        """
        images_BHWC = images_BHWC.view()
        images_BHWC.flags.writeable = False
        try:
            changed: Any = self.function(images_BHWC, dose)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.source} failed ({_words(error)}) on images {list(images_BHWC.shape)} with the "
                f"constants {list(dose.constants)}. {REMEDY}"
            ) from error
        if not isinstance(changed, np.ndarray):
            raise ConfigError(f"{self.source} returned {_kind(changed)}, not an array. {REMEDY}")
        if changed.dtype not in (np.uint8, np.float32) or changed.shape != images_BHWC.shape:
            raise ConfigError(
                f"{self.source} returned {changed.dtype} {list(changed.shape)} for uint8 {list(images_BHWC.shape)}; it "
                f"must return uint8, or float32 on the scale 0..255, in the same shape. {REMEDY}"
            )
        if changed.dtype == np.float32 and not np.isfinite(changed).all():
            raise ConfigError(f"{self.source} returned values that are NaN or infinite. {REMEDY}")
        return np.array(changed, order="C")  # the caller overwrites it, and the plugin may have kept it


def plugin_names() -> tuple[str, ...]:
    """The names of the installed plugins, without loading any; names that are refused are left out."""
    points = sorted(_points().items())
    return tuple(name for name, found in points if all(_wrong_name(point) is None for point in found))


def plugins_and_refusals() -> tuple[list[InstalledPlugin], list[str]]:
    """Load every plugin: those that pass the checks, and the messages about those that do not."""
    found, refused = list[InstalledPlugin](), list[str]()
    for name in sorted(_points()):
        try:
            plugin = find_plugin(name)
        except UserError as error:
            refused.append(str(error))
        else:
            found += [plugin] if plugin else []
    return found, refused


@cache
def find_plugin(name: str) -> InstalledPlugin | None:
    """Load the plugin of this name in lower case; `None` if no installed package has one.

    Raises ConfigError, which names the package, if the plugin or the name of another one of its package is not as
    `CorruptionPlugin` says, if two packages have the name, or if the plugin fails on small images.
    """
    points = _points().get(name, ())
    if not points:
        return None
    if len(points) > 1:
        raise ConfigError(
            f"The corruption {name!r} is in {' and in '.join(sorted(map(_package, points)))} (entry points of the "
            f"group {GROUP}). Uninstall all but one."
        )
    (point,) = points
    siblings = (s for found in _points().values() for s in found if _package(s) == _package(point))
    for sibling in (point, *siblings):
        wrong = _wrong_name(sibling)
        if wrong:
            raise ConfigError(f"{_source(sibling)} {wrong}. {REMEDY}")
    plugin = _checked(point, _loaded(point))
    _try_out(plugin)
    return plugin


def plugin_versions(names: Iterable[str]) -> dict[str, str]:
    """The packages that the corruptions among `names` come from, which manifests record.

    names: names of corruptions, published ones or plugins. Returns `package==version` by name of the plugin; empty if
    all are published ones. Raises ConfigError if there is no such plugin, or it is refused.
    """
    versions = {}
    for name in dict.fromkeys(str(name).lower() for name in names):
        if name in BY_LOWER_NAME:
            continue
        plugin = find_plugin(name)
        if plugin is None:
            raise ConfigError(unknown_name("corruption plugin", name, plugin_names()))
        versions[name] = plugin.requirement
    return versions


def plugin_settings(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """`plugin_versions` as a setting for the manifest of a stage; empty without plugins, so that it stays as it was.

    With it, a stage that was made with another version of a plugin is refused when it is resumed. Raises ConfigError as
    `plugin_versions` does.
    """
    versions = plugin_versions(names)
    return {SETTING: versions} if versions else {}


def check_plugin_versions(recorded: Mapping[str, str], *, where: str = "this process") -> None:
    """Raise ConfigError unless the plugins here are those that `plugin_versions` returned elsewhere.

    recorded: `package==version` by name of the plugin. where: the process in words, for the message.
    """
    for name, wanted in recorded.items():
        plugin = find_plugin(name)
        if plugin is None or plugin.requirement != wanted:
            has = "no such corruption" if plugin is None else f"that of {plugin.requirement}"
            raise ConfigError(
                f"The corruption {name!r} is that of {wanted}, but {where} has {has}. Install {wanted} there: another "
                "version may change the images."
            )


@cache
def _points() -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points by name in lower case, the form in which names are looked up."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        key = point.name.lower()
        found[key] = (*found.get(key, ()), point)
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {_version(point)}" if point.dist else "an unknown package"


def _version(point: EntryPoint) -> str | None:
    """The version of an entry point's package, `None` if it has none."""
    if point.dist is None or "Version" not in point.dist.metadata:
        return None
    return point.dist.version


def _source(point: EntryPoint) -> str:
    return f"The corruption {point.name!r} of {_package(point)} (entry point {point.value}, group {GROUP})"


def _wrong_name(point: EntryPoint) -> str | None:
    """What is wrong with an entry point's name, or `None`."""
    if point.name.lower() in BY_LOWER_NAME:
        return f"takes the name of the published corruption {BY_LOWER_NAME[point.name.lower()].name!r}"
    if not NAME.fullmatch(point.name):
        return "has a name of other characters than lower-case letters, digits and '_', with a letter first"
    return None


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_source(point)} cannot be loaded ({_words(error)}). {REMEDY}") from error


def _checked(point: EntryPoint, found: Any) -> InstalledPlugin:
    """The plugin that an entry point loaded, or ConfigError."""
    source = _source(point)
    if point.dist is None or not _version(point):
        raise ConfigError(f"{source} has no version to compare with others. Install its package with pip.")
    for field in FIELDS:
        try:
            getattr(found, field)
        except Exception as error:
            raise ConfigError(
                f"{source} is {_kind(found)} without {field!r} ({_words(error)}); a CorruptionPlugin "
                f"has {', '.join(FIELDS)}. {REMEDY}"
            ) from error
    if not isinstance(found.name, str) or found.name != point.name:
        raise ConfigError(f"{source} names itself {found.name!r}; both names must be equal. {REMEDY}")
    if not (isinstance(found.category, str) and NAME.fullmatch(found.category)):
        raise ConfigError(
            f"{source} has the category {found.category!r}; it must be a word of lower-case letters, digits and '_'. "
            f"{REMEDY}"
        )
    if not callable(found.apply):
        raise ConfigError(f"{source} has {_kind(found.apply)} for 'apply', not a function. {REMEDY}")
    return InstalledPlugin(
        name=point.name,
        category=found.category,
        constants=_by_table(source, found.constants),
        function=found.apply,
        source=source,
        requirement=f"{point.dist.name}=={_version(point)}",
    )


def _by_table(source: str, constants: Any) -> dict[str, FiveSeverities]:
    """The constants by table. Raises ConfigError for anything but five rows of numbers of one length."""
    if not isinstance(constants, Mapping):
        constants = dict.fromkeys(TABLES, constants)
    unknown = [table for table in constants if table not in TABLES]
    if unknown:
        raise ConfigError(f"{source}: {unknown_name('severity table', str(unknown[0]), TABLES)}. {REMEDY}")
    tables = {}
    for table in TABLES:
        if table not in constants:
            continue
        try:
            rows = tuple(tuple(_number(value) for value in row) for row in constants[table])
        except (TypeError, ValueError):
            rows = ()
        if len(rows) != len(SEVERITIES) or not rows[0] or len({len(row) for row in rows}) != 1:
            raise ConfigError(
                f"{source} has the constants {_short(constants[table])}; they must be five tuples of "
                f"finite numbers, one for each severity and all of one length. {REMEDY}"
            )
        tables[table] = rows
    if not tables:
        raise ConfigError(
            f"{source} has no constants; give five tuples, or such a list for one table at least. {REMEDY}"
        )
    return tables


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError("not a number")
    if not math.isfinite(value):
        raise ValueError("not finite")
    return float(value)


def _try_out(plugin: InstalledPlugin) -> None:
    """Apply the plugin to three images together, then to each alone. Raises ConfigError if the results differ."""
    images = keyed_generator("plugin trial").integers(256, size=TRIAL_SHAPE, dtype=np.uint8)
    table = next(iter(plugin.constants))
    for severity in SEVERITIES:
        together = plugin.apply(images, _dose(plugin, table, severity, ids=range(len(images))))
        for i in reversed(range(len(images))):
            alone = plugin.apply(images[i : i + 1], _dose(plugin, table, severity, ids=[i]))
            if not np.array_equal(alone[0], together[i]):
                raise ConfigError(
                    f"{plugin.source} gives an image other pixels in another batch or call. It must draw only from "
                    "dose.rngs, all numbers of an image before those of the next, and must neither mix images nor keep "
                    f"state. {REMEDY}"
                )


def _dose(plugin: InstalledPlugin, table: str, severity: int, *, ids: Sequence[int]) -> Dose:
    made_for = load_table(table)
    return Dose(
        constants=plugin.constants_at(table, severity=severity),
        native_size=made_for.native_size,
        frost_scale=made_for.frost_scale,
        rngs=iter_keyed_generators("plugin trial", plugin.name, severity, last=ids),
    )


def _words(error: BaseException) -> str:
    """The error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _short(value: object) -> str:
    """The start and end of a value, on one line."""
    return " ".join(reprlib.repr(value).split())


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
