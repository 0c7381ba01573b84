"""The settings of environments: a user's own images, or a corruption of a published archive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from metarepair.config.section import Fraction, Section
from tasks.corruptions import CORRUPTIONS, resolve
from tasks.datasets import ImageSource
from tasks.errors import ConfigError, near_names

Kind = Literal["images", "archive"]
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_RESERVED = ("shared",)
MOST_SHOWN = 40  # names in a message, in which all published corruptions have room twice
_names: ContextVar[tuple[str, ...]] = ContextVar("names of environments", default=())


class EnvironmentConfig(Section):
    """An environment: your own images (`images` or `table`), or a corruption of a published `archive`."""

    images: str | None = Field(
        None,
        min_length=1,
        description="Labelled images: a folder of class folders, or Parquet or Arrow files.",
    )
    table: str | None = Field(
        None,
        min_length=1,
        description="Labelled images in place of `images`: a CSV or JSON Lines file of `path,label[,group]`.",
    )
    holdout: str | None = Field(
        None,
        min_length=1,
        description="Other images that only judge, in any form of `images` or `table`. If not set, 20% of the images "
        "are set aside for that.",
    )
    root: str | None = Field(
        None,
        min_length=1,
        description="Folder that the paths of tables are relative to. If not set, the folder of each table.",
    )
    path: str | None = Field(
        None,
        min_length=1,
        description="Column of a table that holds the images' paths; of Parquet or Arrow files, the encoded images. If "
        "not set, `path`, or the only candidate.",
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="Column of a table that holds the labels, as names or numbers of classes. If not set, `label`.",
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="Column of a table that names images that belong together, such as a day or a device: they are "
        "never both learned from and judged on. If not set, `group`, if there is such a column.",
    )
    unreadable: Fraction = Field(
        0.05, description="Share of the images that may be unreadable; those are listed and left out. 0 to 1."
    )
    left_out: tuple[str, ...] = Field(
        (),
        description="Names of images that are neither learned from nor selected by, as they are in the folder or the "
        "table; those that judge stay. `fix --drop-suspicious` names them here.",
    )
    archive: str | None = Field(
        None,
        min_length=1,
        description="Folder of a published archive, such as CIFAR-10-C, of the test split's images.",
    )
    corruption: str | None = Field(None, description="The corruption of `archive`.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> EnvironmentConfig:
        given = [name for name in ("images", "table", "archive") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'none'} of images, table and archive given; give exactly one of them"
            )
        if (self.archive is None) != (self.corruption is None):
            raise ValueError("archive and corruption go together: give both, or neither")
        changed = self.model_fields_set - {given[0], "corruption"}
        if self.archive is not None and changed:
            raise ValueError(f"{', '.join(sorted(changed))}: an archive has no such setting; leave it out")
        if self.corruption is not None:
            resolve(self.corruption)
        return self

    @property
    def kind(self) -> Kind:
        """`archive` or `images`."""
        return "archive" if self.archive is not None else "images"

    def sources(self, name: str) -> dict[str, ImageSource]:
        """Return where the images of an `images` environment lie: `collect`, and `holdout` if there is one."""
        given = {"collect": ("images" if self.table is None else "table", self.images or self.table)}
        if self.holdout is not None:
            given["holdout"] = ("holdout", self.holdout)
        return {
            part: ImageSource(
                setting=f"environments.{name}.{setting}",
                location=Path(str(text)).expanduser(),
                root=None if self.root is None else Path(self.root).expanduser(),
                image_column=self.path,
                label_column=self.label,
                group_column=self.group,
                settings=(
                    f"environments.{name}.path",
                    f"environments.{name}.label",
                    f"environments.{name}.group",
                ),
                root_setting=f"environments.{name}.root",
            )
            for part, (setting, text) in given.items()
        }


def check_environment_name(name: object) -> None:
    """Raise ConfigError if an environment cannot have this name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"environments: {str(name)[:80]!r} cannot name an environment: use 1 to 200 letters, digits, `_`, "
            "`-` or `.`, with no `.` at the start"
        )
    if name in _RESERVED or _is_corruption(name):
        raise ConfigError(
            f"environments: {name!r} cannot name an environment, since "
            f"{'it is reserved' if name in _RESERVED else 'a corruption has this name'}; choose another"
        )


def _is_corruption(name: str) -> bool:
    try:
        resolve(name)
    except ConfigError:
        return False
    return True


@contextmanager
def naming(names: Iterable[str]) -> Iterator[None]:
    """Let `resolve_names` accept these environments while the block validates settings."""
    token = _names.set(tuple(map(str, names)))
    try:
        yield
    finally:
        _names.reset(token)


def resolve_name(name: str) -> str:
    """Return the name of an environment as given, or the published name of a corruption. Raises ConfigError."""
    known = _names.get()
    if name in known:
        return name
    try:
        return resolve(name)
    except ConfigError as error:
        hint = near_names(name, (*known, *CORRUPTIONS))
        own = f" Your environments: {', '.join(known)}." if known else ""
        if not own:
            raise
        raise ConfigError(f"no environment or corruption {name!r}{hint or '.'}{own}") from error


def resolve_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of environments and corruptions, each once. Raises ConfigError."""
    resolved = tuple(map(resolve_name, names))
    if len(set(resolved)) != len(resolved):
        shown = names if len(names) <= MOST_SHOWN else (*names[:MOST_SHOWN], "…")
        raise ConfigError(
            f"a corruption or environment is named twice in {', '.join(shown)}. Name each once."
        )
    return resolved
