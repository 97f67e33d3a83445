"""JSON in and out of frozen dataclasses: fields are the keys, types say what a key may hold."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Self, Union, cast, get_args, get_origin


class Record:
    """A frozen dataclass whose fields are the keys of a JSON object."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(cast(Any, self))}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `to_json`. Keys that no field has are ignored, missing ones take their field's default.

        Raises:
            ValueError: naming the key that is missing or holds something else than its type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.__name__} is {type(values).__name__}, not an object")
        hints, found = _hints(cast(Any, cls)), {}
        for field in dataclasses.fields(cast(Any, cls)):
            if field.name in values:
                found[field.name] = _read(hints[field.name], values[field.name], field.name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ValueError(f"{field.name} is missing")
        return cls(**found)


class SparseRecord(Record):
    """A record without the keys that are None by default and now."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        optional = {field.name for field in dataclasses.fields(cast(Any, self)) if field.default is None}
        return {name: one for name, one in super().to_json().items() if one is not None or name not in optional}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple | frozenset) else value


def _read(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the type that its field declares."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for one in args:
            if one is not type(None):
                try:
                    return _read(one, value, name)
                except ValueError as error:
                    errors.append(error)
        raise errors[0]
    if isinstance(kind, type) and issubclass(kind, Record):
        try:
            return kind.from_json(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if origin in (tuple, list) and isinstance(value, list):
        if origin is list or (len(args) == 2 and args[1] is Ellipsis):
            return origin(_read(args[0], one, f"{name}[{at}]") for at, one in enumerate(value))
        if len(args) == len(value):
            return tuple(
                _read(one, part, f"{name}[{at}]") for at, (one, part) in enumerate(zip(args, value, strict=True))
            )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _read(args[1], one, f"{name}.{key}") for key, one in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if isinstance(value, float) else value
    if (kind is int and type(value) is int) or (kind in (str, bool) and type(value) is kind):
        return value
    if kind in (dict, list) and isinstance(value, kind):
        return value
    raise ValueError(f"{name} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
