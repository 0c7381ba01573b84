"""What every group of settings is made of: strict, frozen, closed to unknown keys; and the usual ranges."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Value = TypeVar("Value")
Rate = Annotated[float, Field(gt=0, le=10)]


class Section(BaseModel):
    """A group of settings: frozen, strict about types, closed to unknown keys.

    LATER: names of settings that came after runs had been recorded; they are written only where they are not at their
    defaults, so that these runs stay equal to the same today.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _lists_to_tuples(cls, values: Any) -> Any:
        """YAML has lists, frozen settings have tuples."""
        if isinstance(values, dict):
            return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return values

    @model_serializer(mode="wrap")
    def _plain(self, rest: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = rest(self)
        fields = type(self).model_fields
        same = {k for k in self.LATER & values.keys() if getattr(self, k) == fields[k].default}
        return {k: v for k, v in values.items() if k not in same}


def each_once(values: tuple[Value, ...]) -> tuple[Value, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there twice; give each once")
    return values


def in_yaml(value: Any) -> str:
    """A value on one line as a person would write it in YAML; text in quotes."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    try:
        text: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    except yaml.YAMLError:  # no value of YAML: given by Python
        return repr(value)
    return text.removesuffix("...\n").strip()
