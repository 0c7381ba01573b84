"""Write docs/settings.md from the descriptions of the settings: `python -m metarepair.console.settings_page`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from metarepair.config.run import Config
from metarepair.config.section import LARGEST, Section, in_yaml
from metarepair.methods import all_methods

HEAD = """# Settings

Every setting of a YAML file and of `--set KEY=VALUE`, with its type, range and default. A misspelt key
or value is an error that lists near names. This page is made from the descriptions in
`metarepair/config/` by `python -m metarepair.console.settings_page > docs/settings.md`.

No integer is above 2,147,483,647. A key in a section is written as `section.key` with `--set`, for
example `--set train.episodes=20`.
"""
Schema = Mapping[str, Any]


def settings_page() -> str:
    """Return the page as Markdown."""
    sections = {key: _section_of(field.annotation) for key, field in Config.model_fields.items()}
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


def _section_of(annotation: Any) -> type[Section] | None:
    """The settings class of a key that is a group of settings, which may be optional."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _table(section: type[Section], prefix: str, keys: Sequence[str]) -> list[str]:
    head = ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    return [*head, *_rows(section, prefix, keys), ""]


def _rows(section: type[Section], prefix: str, keys: Sequence[str]) -> Iterator[str]:
    """A row for each key, and for each key of the groups inside the section."""
    schema = section.model_json_schema()
    for key in keys:
        field, annotation = schema["properties"][key], section.model_fields[key].annotation
        inner = _section_of(annotation)
        kind = _type(field, schema) if inner is None else "group"
        default = "" if inner is not None else _default(section, key)
        text = field.get("description") or _first_line(inner)
        cells = (f"`{prefix}{key}`", kind, default, text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if inner is not None:
            name = "KEY." if get_origin(annotation) is dict else ""
            yield from _rows(inner, f"{prefix}{key}.{name}", [*inner.model_fields])


def _first_line(section: type[Section] | None) -> str:
    return "" if section is None else inspect.cleandoc(section.__doc__ or "").partition("\n")[0]


def _default(section: type[Section], key: str) -> str:
    field = section.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{in_yaml(value)}`"


def _type(field: Schema, schema: Schema) -> str:
    """The type and range of a field in words, from its JSON schema."""
    if "$ref" in field:
        return _type(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return " or ".join(_type(option, schema) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{in_yaml(field['const'])}`"
    kind: str = field.get("type", "any value")
    if kind == "array":
        return _array(field, schema)
    if kind == "object":
        return "mapping"
    if kind in ("integer", "number"):
        return " ".join([{"integer": "integer", "number": "number"}[kind], *_range(field)])
    return {"boolean": "true or false", "string": "text", "null": "none"}.get(kind, kind)


def _array(field: Schema, schema: Schema) -> str:
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: {_type(field['prefixItems'][0], schema)}"
    return f"list of: {_type(field['items'], schema)}" if field.get("items") else "list"


def _range(field: Schema) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    given = {sign: field[name] for name, sign in signs.items() if abs(field.get(name, LARGEST)) != LARGEST}
    limits = [f"{sign} {limit:g}" for sign, limit in given.items()]
    return [" and ".join(limits)] if limits else []


if __name__ == "__main__":
    sys.stdout.write(settings_page())
