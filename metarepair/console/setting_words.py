"""Say in words what a setting may be: its group, type, range and default, for pages and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from metarepair.config.section import LARGEST, Section, in_yaml

Schema = Mapping[str, Any]


def section_of(annotation: Any) -> type[Section] | None:
    """The settings class of a key that is a group of settings, which may be optional."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def first_line(section: type[Section] | None) -> str:
    return "" if section is None else inspect.cleandoc(section.__doc__ or "").partition("\n")[0]


def default_words(section: type[Section], key: str) -> str:
    field = section.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{in_yaml(value)}`"


def type_words(field: Schema, schema: Schema) -> str:
    """The type and range of a field in words, from its JSON schema."""
    if "$ref" in field:
        return type_words(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return " or ".join(type_words(option, schema) for option in field["anyOf"])
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
        return f"list of {len(field['prefixItems'])}: {type_words(field['prefixItems'][0], schema)}"
    return f"list of: {type_words(field['items'], schema)}" if field.get("items") else "list"


def _range(field: Schema) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    given = {sign: field[name] for name, sign in signs.items() if abs(field.get(name, LARGEST)) != LARGEST}
    limits = [f"{sign} {limit:g}" for sign, limit in given.items()]
    return [" and ".join(limits)] if limits else []
