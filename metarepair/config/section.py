"""The base class of every group of settings (strict, frozen, closed to unknown keys), and common ranges."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_jsonable_python

from tasks.storage.settings import Settings

LARGEST = 2**31 - 1  # so that a product of two settings fits into 64 bits
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Whole = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")
Rate = Annotated[float, Field(gt=0, le=10)]


class Section(BaseModel):
    """A group of settings: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_to_tuples(cls, values: Any) -> Any:
        """Turn YAML's lists into tuples, which frozen settings need."""
        if isinstance(values, dict):
            return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return values

    def settings(self, *, include: set[str] | None = None, exclude: set[str] | None = None) -> Settings:
        """Return plain values with their defaults, for the record of a stage and for comparison with older records."""
        values = self.model_dump(mode="json", include=include, exclude=exclude)
        groups = {key: group for key in values if isinstance(group := getattr(self, key), Section)}
        fields = {key: field for key in values if not (field := type(self).model_fields[key]).is_required()}
        defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
        return Settings(
            values | {key: group.settings() for key, group in groups.items()},
            defaults={key: to_jsonable_python(value) for key, value in defaults.items()},
        )


def each_once(values: tuple[Value, ...]) -> tuple[Value, ...]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is listed twice; list each once")
        seen.add(value)
    return values


def in_yaml(value: Any) -> str:
    """Return a value on one line as a person would write it in YAML, with text in quotes."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes at most 4,300 digits
        return hex(value)
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    except yaml.YAMLError:  # a Python value that YAML has no form for
        return repr(value)
    return text.removesuffix("...\n").strip()
