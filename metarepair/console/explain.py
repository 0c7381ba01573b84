"""Describe the settings to an editor, as a JSON Schema, and to a person, one key or section at a time."""

from __future__ import annotations

import inspect
import json
from typing import get_origin

from metarepair.config.load import known_keys, split_key, unknown_setting
from metarepair.config.run import Config
from metarepair.config.section import Section
from metarepair.console.setting_words import default_words, first_line, section_of, type_words
from tasks.errors import ConfigError

SCHEMA = "metarepair.schema.json"  # beside the YAML files whose first line names it


def schema_text() -> str:
    """Return the JSON Schema of a YAML file of settings.

    No setting is required in the file: any may come from `--set` or from a kit. What only a method's own package knows,
    below `methods`, is not checked.
    """
    schema = Config.model_json_schema()
    for group in (schema, *schema["$defs"].values()):
        group.pop("required", None)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | schema, indent=1, ensure_ascii=False)


def explain_key(key: str) -> str:
    """Return what a setting means, allows and defaults to; of a section, its keys.

    Raises ConfigError for a key that is no setting, with the same near names as a YAML file that has it.
    """
    group, done, left = _start(split_key(key))
    known = known_keys(group, f"{done}." if done else "")
    while left:
        name, *left = left
        done = f"{done}.{name}".lstrip(".")
        if name not in group.model_fields:
            raise ConfigError(unknown_setting(done, group, known))
        annotation = group.model_fields[name].annotation
        is_mapping, inner = get_origin(annotation) is dict, section_of(annotation)
        if inner is None and left and not is_mapping:
            raise ConfigError(
                f"{done} is a value, not a group of settings: metarepair config --explain {done}"
            )
        if inner is None:
            return _setting(done, group, name)
        if is_mapping:
            one, *left = left or ["KEY"]
            done = f"{done}.{one}"
        group = inner
    return _section(done, group)


def _start(steps: list[str]) -> tuple[type[Section], str, list[str]]:
    """The group to start in, its name, and the steps below it: a method has settings of its own."""
    if steps[0] != "methods" or len(steps) == 1:
        return Config, "", steps
    from metarepair.methods import get_method  # it imports torch, which no other key needs

    return get_method(steps[1]).Settings, f"methods.{steps[1]}", steps[2:]


def _setting(key: str, group: type[Section], name: str) -> str:
    schema = group.model_json_schema()
    field = schema["properties"][name]
    allowed, default = (
        text.replace("`", "") for text in (type_words(field, schema), default_words(group, name))
    )
    return f"{key}: {field['description']}\n  allowed: {allowed}\n  default: {default}"


def _section(key: str, group: type[Section]) -> str:
    told = {
        f"{key}.{name}": field.description or first_line(section_of(field.annotation))
        for name, field in group.model_fields.items()
    }
    width = max(map(len, told), default=0)
    lines = [f"  {name:{width}}  {text}" for name, text in told.items()]
    return "\n".join([f"{key}: {inspect.cleandoc(group.__doc__ or '')}", *lines])
