"""Write docs/settings.md from the descriptions of the settings: `python -m metarepair.console.settings_page`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import get_origin

from metarepair.config.run import Config
from metarepair.config.section import Section
from metarepair.console.setting_words import default_words, first_line, section_of, type_words
from metarepair.methods import all_methods

HEAD = """# Settings

Every setting of a YAML file and of `--set KEY=VALUE`, with its type, range and default. A misspelt key
or value is an error that lists near names. `metarepair config --explain KEY` prints a setting or a
section of this page, and an editor can check a YAML file
([editors and shells](stages.md#editors-and-shells)). This page is made from the descriptions in
`metarepair/config/` by `python -m metarepair.console.settings_page > docs/settings.md`.

No integer is above 2,147,483,647. A key in a section is written as `section.key` with `--set`, for
example `--set train.episodes=20`.
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    sections = {key: section_of(field.annotation) for key, field in Config.model_fields.items()}
    single = [key for key, section in sections.items() if section is None]
    parts = [HEAD, "## The run\n", *_table(Config, "", single)]
    for key, section in sections.items():
        if section is not None:
            parts += _part(key, section)
    for name, method in sorted(all_methods().items()):
        if method.Settings.model_fields:
            parts += _part(f"methods.{name}", method.Settings)
    return "\n".join(parts)


def _part(name: str, section: type[Section]) -> list[str]:
    text = inspect.cleandoc(section.__doc__ or "")
    return [f"## `{name}`\n", f"{text}\n", *_table(section, f"{name}.", [*section.model_fields])]


def _table(section: type[Section], prefix: str, keys: Sequence[str]) -> list[str]:
    head = ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    return [*head, *_rows(section, prefix, keys), ""]


def _rows(section: type[Section], prefix: str, keys: Sequence[str]) -> Iterator[str]:
    """A row for each key, and for each key of the groups inside the section."""
    schema = section.model_json_schema()
    for key in keys:
        field, annotation = schema["properties"][key], section.model_fields[key].annotation
        inner = section_of(annotation)
        kind = type_words(field, schema) if inner is None else "group"
        default = "" if inner is not None else default_words(section, key)
        text = field.get("description") or first_line(inner)
        cells = (f"`{prefix}{key}`", kind, default, text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if inner is not None:
            name = "KEY." if get_origin(annotation) is dict else ""
            yield from _rows(inner, f"{prefix}{key}.{name}", [*inner.model_fields])


if __name__ == "__main__":
    sys.stdout.write(settings_page())
