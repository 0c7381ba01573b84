"""Load a run's settings from a YAML file and `key=value` overrides, and check them.

Unknown keys, wrong types and values out of range raise a ConfigError of one paragraph that lists near names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from metarepair.config.hub import with_hub
from metarepair.config.kit import merged, with_kit
from metarepair.config.old_names import translated
from metarepair.config.run import Config
from metarepair.config.search import KINDS
from metarepair.config.section import in_yaml
from metarepair.shipped import shipped_config
from tasks.errors import ConfigError, UserError, near_names
from tasks.storage.paths import require_regular

logger = logging.getLogger(__name__)


def load_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    usual: Mapping[str, Any] | None = None,
    **direct: Any,
) -> Config:
    """Load the settings of a run from a YAML file and from what is given directly.

    Args:
        path: The YAML file, `shipped:NAME` for one of tune_configs/; None to start from no settings.
        overrides: Settings in the form `section.key=value`, as after `--set`; they replace those of the file.
        usual: Settings that hold where neither gives another; None for the defaults of each setting.
        direct: Settings by name, which replace both: a value, or a dict with some settings of a section. None
            stands for a setting that is not given.

    Returns:
        The settings, checked and frozen.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown (the message has the nearest names) or wrong.
    """
    if not isinstance(path, str | Path | None):
        raise ConfigError(f"path is {type(path).__name__}; give the path of a YAML file, or None.")
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError("overrides must be a list of texts, such as ['train.episodes=20'].")
    values = {} if path is None else _read_yaml(shipped_config(path))
    for override in overrides:
        _set(values, override)
    for key, value in direct.items():
        if isinstance(value, dict):
            given = {k: v for k, v in value.items() if v is not None}
            before = values.get(key, {})
            values |= {key: before | given} if given and isinstance(before, dict) else {}
        elif value is not None:
            values[key] = value
    where = "the command line" if path is None else f"{path} and --set" if overrides else str(path)
    for note in _today(values, where)[1]:
        logger.warning(f"{note} (in {where})")
    return parse_config(merged(usual or {}, _today(values, where)[0]), where=where)


def parse_config(values: dict[str, Any], *, where: str = "the configuration") -> Config:
    """Build checked settings from plain values. Raises ConfigError that names the first wrong setting.

    Those of a kit complete them, and what a hub states of its model. Raises StageError, too, if the kit is not
    finished, and WeightsError if the hub's files are missing.
    """
    values = with_hub(with_kit(_today(values, where)[0]))
    try:
        return Config.model_validate(values)
    except UserError as error:
        raise ConfigError(f"{error} (in {where})") from error
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from error


def _today(values: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """`translated`, with the place of the settings in an error."""
    try:
        return translated(values)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {where})") from error


def config_text(config: Config) -> str:
    """Return the settings as YAML that `load_config` reads back as the same; without `search` if there is none."""
    values = config.model_dump(mode="json", exclude={"search"} if config.search is None else set())
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


# pydantic's types of errors, in words for the author of a YAML file.
WORDS = {
    "tuple_type": "it must be a list, such as [a, b]",
    "dict_type": "it must be a group of settings, such as {{key: value}}",
    "model_type": "it must be a group of settings, such as {{key: value}}",
    "string_type": "it must be text; put it in quotes",
    "string_unicode": "it must be text in UTF-8; rename the file or folder that it names",
    "string_pattern_mismatch": "it may contain letters, digits, _, - and, except at the start, .",  # a run's name
    "literal_error": "it must be {expected}",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "finite_number": "it must be a finite number",
    "bool_type": "it must be true or false",
    "too_short": "it must have {min_length} or more entries",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
}


SHIPPED_CONFIGS = "Examples are in tune_configs/ (shipped:NAME); tune_configs/sample.yaml is the shortest."
LARGEST_BYTES = 1 << 20  # of a file of settings
MOST_VALUES = 100_000  # of one, with what its aliases stand for
LONGEST_SHOWN = 1000  # characters of a wrong value in a message


class _Loader(yaml.SafeLoader):
    """Reads numbers, text, lists and maps alone, up to MOST_VALUES of them.

    1e-3 is a number, although YAML 1.1 reads it as text. A date is text. Two errors are refused: an anchor that
    contains itself, and a key that occurs twice, where PyYAML would silently keep the last value.
    """

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}, set()) > MOST_VALUES:
            raise yaml.composer.ComposerError(problem=f"it has more than {MOST_VALUES:,} values")
        return self.construct_document(node)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if isinstance(node.value, str) and "\0" in node.value:  # no path may have one
            raise yaml.constructor.ConstructorError(
                problem="a text has a null character", problem_mark=node.start_mark
            )
        return super().construct_scalar(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        str(value)  # raises ValueError for more digits than Python writes, as a hexadecimal number may have
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} occurs twice", problem_mark=node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _count_values(node: yaml.Node, counted: dict[int, int], under_way: set[int]) -> int:
    """The number of values below `node`, where each alias counts as what it stands for."""
    if id(node) in under_way:
        raise yaml.composer.ComposerError(problem="an anchor contains itself", problem_mark=node.start_mark)
    if id(node) not in counted:
        under_way.add(id(node))
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        values = [value for entry in below for value in (entry if isinstance(entry, tuple) else (entry,))]
        counted[id(node)] = 1 + sum(_count_values(value, counted, under_way) for value in values)
        under_way.discard(id(node))
    return counted[id(node)]


_PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
}
_Loader.yaml_constructors = {
    t: c for t, c in yaml.SafeLoader.yaml_constructors.items() if t is None or t in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as a number."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _parse_yaml(text: str) -> Any:
    """The plain value of a YAML text. Raises YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except ValueError as error:
        # From int() and float(): the value does not fit its tag, or it has thousands of digits.
        raise yaml.YAMLError(f"a number cannot be read: {str(error)[:200]}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        require_regular(path)
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError(
                f"--config {path} has {path.stat().st_size:,} bytes; settings have at most 1 MiB."
            )
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a null character
        raise ConfigError(f"--config {path} cannot be read: {_why(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}{_line_of(error)} is not YAML: {_problem(error)}. Check the indentation "
            "and the colons there."
        ) from error
    if not isinstance(values, dict):
        kind = {type(None): "is empty", list: "holds a list"}.get(type(values), "holds one value")
        raise ConfigError(
            f"{path} {kind}, and settings are `key: value` lines, such as `name: mine`. {SHIPPED_CONFIGS}"
        )
    return values


def _why(error: OSError | ValueError) -> str:
    """The reason why a file of settings cannot be read, and what to give instead."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not a text file in UTF-8. Give a YAML file."
    if isinstance(error, FileNotFoundError):
        return f"it does not exist. {SHIPPED_CONFIGS}"
    if isinstance(error, IsADirectoryError):
        return "it is a folder. Give a YAML file in it."
    return f"{getattr(error, 'strerror', None) or error}."


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1},"


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not key=value, such as --set train.episodes=20.")
    *sections, last = split_key(key)
    if not all((*sections, last)):
        raise ConfigError(
            f"--set {override!r}: {key!r} has an empty name before or after a dot. Write SECTION.SETTING=VALUE, such "
            "as --set train.episodes=20."
        )
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a group of settings.")
    try:
        values[last] = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r} is not a YAML value: {_problem(error)}.") from error


def split_key(key: str) -> list[str]:
    """Split `a.b.c` into a, b, c; in `search.space`, the dotted name of a setting is one step."""
    before, space, name = key.partition("search.space.")
    if before or not space:
        return key.split(".")
    setting, _, last = name.rpartition(".")
    named = last in KINDS and "." in setting  # experiences.choice is a setting itself
    return ["search", "space", *([setting, last] if named else [name])]


def explain(error: ValidationError, where: str, *, root: type[BaseModel] = Config, above: str = "") -> str:
    """Describe the first wrong setting in one paragraph.

    root: the group of settings that was read. above: its dotted name with a dot at the end, empty for a whole Config.
    """
    first = error.errors()[0]
    key = (above + ".".join(str(part) for part in first["loc"])).rstrip(".")
    if first["type"] == "extra_forbidden":
        return f"{unknown_setting(key, _group_at(first['loc'][:-1], root), known_keys(root, above))} (in {where})"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        name, _, number = key.rpartition(".")
        return f"{name}: entry {int(number) + 1} is missing (in {where})"
    if first["type"] == "missing":
        return f"the setting {key!r} is missing in {where}. Add it, or `--set {key}=…`."
    came = "" if first["type"] in {"value_error", "model_type"} else f"={_shortened(in_yaml(first['input']))}"
    message = WORDS[first["type"]].format(**first.get("ctx", {})) if first["type"] in WORDS else first["msg"]
    message = message.removeprefix("Value error, ")
    if first["type"] == "literal_error":
        message += near_names(str(first["input"]), re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    named = f"{key}{came}: " if key else ""  # a rule across groups names its settings itself
    return f"{named}{message[:1].lower()}{message[1:]} (in {where})"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def unknown_setting(key: str, group: type[BaseModel], known: list[str]) -> str:
    """Say that `key` is no setting of `group`, with the nearest of the `known` ones."""
    above, _, name = key.rpartition(".")
    same = [k for k in known if k.rpartition(".")[2] == name]
    here = [f"{above}.{field}" if above else field for field in group.model_fields]
    hint = f"; did you mean {same[0]!r}?" if same else near_names(key, dict.fromkeys([*here, *known]))
    return f"no setting {key!r}{hint or '.'} There are: {', '.join(group.model_fields) or 'none'}"


def _group_at(steps: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """Return the innermost group of settings on the path `steps`."""
    group = root
    for name in steps:
        field = group.model_fields.get(str(name))
        group = (_group(field.annotation) if field else None) or group
    return group


def _group(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings in an annotation (the type itself, its optional form, or a mapping's values)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _group(part))), None)


def known_keys(group: type[BaseModel] = Config, above: str = "") -> list[str]:
    """Return the dotted names of all settings."""
    keys = []
    for name, field in group.model_fields.items():
        inner = None if get_origin(field.annotation) is dict else _group(field.annotation)
        keys += [above + name] if inner is None else known_keys(inner, f"{above}{name}.")
    return keys
