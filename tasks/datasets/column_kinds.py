"""Recognise the Arrow types that can hold encoded images or labels, and read their values as Python objects.

A type may be dictionary-encoded, run-end encoded, or an extension of another type; what counts is the type of its
values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import types

IMAGE_TYPES = (
    "binary, large_binary, binary_view, fixed_size_binary, or a struct with a field `bytes` of such a type"
)
LABEL_TYPES = "integers or strings, plain or as a dictionary"
Test = Callable[[pa.DataType], bool]
_USUAL: tuple[Test, ...] = (types.is_binary, types.is_large_binary)
_VARIABLE: tuple[Test, ...] = (*_USUAL, types.is_binary_view)
_BYTES: tuple[Test, ...] = (*_VARIABLE, types.is_fixed_size_binary)
_TEXT: tuple[Test, ...] = (types.is_string, types.is_large_string, types.is_string_view)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images."""
    return _holds(kind, _BYTES)


def image_candidates(schema: pa.Schema) -> list[str]:
    """The columns that may hold images if no setting names one.

    Binary views are considered only if no column has one of the usual types. Bytes of a fixed size have to be named in
    the settings, since they may be hashes or identifiers.
    """
    for tests in (_USUAL, _VARIABLE):
        names = [field.name for field in schema if _holds(field.type, tests)]
        if names:
            return names
    return []


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return any(test(_value_type(kind)) for test in _TEXT)


def is_whole(kind: pa.DataType) -> bool:
    """Whether values of this type are integers."""
    return bool(types.is_integer(_value_type(kind)))


def values_of(column: pa.Array) -> list[Any]:
    """The values as Python objects: bytes, dicts, strings or integers, `None` for missing values."""
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    values: list[Any] = column.to_pylist()
    return values


def _holds(kind: pa.DataType, tests: Sequence[Test]) -> bool:
    plain = _value_type(kind)
    if types.is_struct(plain):
        if plain.get_field_index("bytes") < 0:
            return False
        plain = _value_type(plain.field("bytes").type)
    return any(test(plain) for test in tests)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without extensions, dictionaries and run-end encoding."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind
