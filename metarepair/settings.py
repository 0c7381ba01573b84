"""A YAML file and `key=value` overrides in, one checked Config out.

Unknown keys, wrong types and values out of range are one-paragraph ConfigErrors that list near names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from metarepair.config import Config
from tasks.errors import ConfigError, UserError, near_names


def load_config(path: Path, overrides: list[str], **direct: Any) -> Config:
    """The YAML file at `path`, then `a.b=value` overrides, then `direct` settings: values, or some of a group's.

    None is a setting that is not given.
    """
    values = _read_yaml(path)
    for override in overrides:
        _set(values, override)
    for key, value in direct.items():
        if isinstance(value, dict):
            given = {k: v for k, v in value.items() if v is not None}
            before = values.get(key, {})
            values |= {key: before | given} if given and isinstance(before, dict) else {}
        elif value is not None:
            values[key] = value
    return parse_config(values, where=str(path))


def parse_config(values: dict[str, Any], *, where: str = "the configuration") -> Config:
    """Checked settings from plain values. Raises ConfigError naming the first wrong setting."""
    try:
        return Config.model_validate(values)
    except UserError as error:
        raise ConfigError(f"{error} (in {where})") from error
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as the number that it is meant to be, and refuses a key that is given twice.

    YAML 1.1 reads the one as a string; PyYAML keeps the last of the others in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                problem=f"{twice[0]!r} twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        near = [str(p) for p in sorted(Path("tune_configs").glob("*.yaml"))]
        raise ConfigError(
            f"--config {path} cannot be read ({error}). Shipped are: {', '.join(near) or 'tune_configs/*.yaml'}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds {type(values).__name__}, not settings. Write `name: …`, `mining: …`."
        )
    return values


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not key=value, as in --set train.episodes=20.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a group of settings.")
    try:
        values[last] = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value.") from error


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = known_keys()
        same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
        near = near_names(key, known if "." in key else [*known, *Config.model_fields])
        hint = f"; did you mean {same[0]!r}?" if same else near
        *_, section = [Config, *(_section(part) for part in first["loc"][:-1])]
        return f"no setting {key!r}{hint or '.'} There are: {', '.join(section.model_fields)} (in {where})"
    if first["type"] == "missing":
        return f"the setting {key!r} is missing in {where}. Add it, or `--set {key}=…`."
    came = "" if first["type"] in {"value_error", "model_type"} else f"={first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}{came}: {message[:1].lower()}{message[1:]} (in {where})"


def _section(name: int | str) -> type[BaseModel]:
    kind = Config.model_fields[str(name)].annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else Config


def known_keys() -> list[str]:
    """All dotted setting names."""
    keys = []
    for name in Config.model_fields:
        section = _section(name)
        keys += [name] if section is Config else [f"{name}.{field}" for field in section.model_fields]
    return keys
