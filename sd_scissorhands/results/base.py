"""JSON in and out of frozen dataclasses: fields are the keys, types say what a key may hold."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, Union, cast, get_args, get_origin


class Record:
    """A frozen dataclass whose fields are the keys of a JSON object."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(cast(Any, self))}

    @classmethod
    def from_json(cls, values: Any, *, strict: bool = True) -> Self:
        """The inverse of `to_json`. Keys that no field has are ignored, missing ones take their field's default.

        Args:
            strict: False reads what can be read of a damaged file, or of a former version's: the rest takes its default,
                or is empty. A number that is missing is NaN, never a default that could pass for a measurement.

        Raises:
            ValueError: naming the key that is missing or holds something else than its type; no object at all.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.__name__} is {type(values).__name__}, not an object")
        hints, found = _hints(cast(Any, cls)), {}
        for field in dataclasses.fields(cast(Any, cls)):
            name, hint = field.name, hints[field.name]
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            number = not strict and hint in (int, float)
            try:
                if name in values:
                    found[name] = _read(hint, values[name], name, strict)
                elif required or number:
                    raise ValueError(f"{name} is missing")
            except ValueError:
                if strict:
                    raise
                if required or number:
                    found[name] = _empty(hint)
        return cls(**found)


@dataclass(frozen=True)
class Reported(Record):
    """A result with files and a page: what the public functions return. A notebook shows its figures and pictures."""

    folder: Path | None = dataclasses.field(default=None, kw_only=True, compare=False)  # of its files; not in JSON
    report: Path | None = dataclasses.field(default=None, kw_only=True, compare=False)  # its page, once written
    remarks: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)  # what was skipped, left out or cut

    to_html: ClassVar[Callable[[Any], str | None]] = staticmethod(
        lambda result: None
    )  # the interface sets it, see `api`

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order; remarks, where there are any, and the page come last."""
        values = super().to_json()
        values.pop("folder", None)
        last = {name: values.pop(name, None) for name in ("remarks", "report")}
        return values | {name: value for name, value in last.items() if value}

    def _repr_html_(self) -> str | None:
        return type(self).to_html(self)


@dataclass(frozen=True)
class Measurement(Reported):
    """A result that lies beside others and knows the command line that it came from, where there was one."""

    command: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order; the command comes after them, where there was one."""
        values = super().to_json()
        command = values.pop("command")
        return values | ({"command": command} if command else {})


class SparseRecord(Record):
    """A record without the keys that are None by default and now."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        optional = {one.name for one in dataclasses.fields(cast(Any, self)) if one.default is None}
        return {name: one for name, one in super().to_json().items() if one is not None or name not in optional}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _read(kind: Any, value: Any, name: str, strict: bool) -> Any:
    """A JSON value as the type that its field declares; unless `strict`, without the items that are not of it."""
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
                    return _read(one, value, name, strict)
                except ValueError as error:
                    errors.append(error)
        raise errors[0]
    if isinstance(kind, type) and issubclass(kind, Record):
        try:
            return kind.from_json(value, strict=strict)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if origin in (tuple, list) and isinstance(value, list):
        if origin is list or (len(args) == 2 and args[1] is Ellipsis):
            return origin(_items(args[0], enumerate(value), f"{name}[", "]", strict).values())
        if len(args) == len(value):
            return tuple(
                _read(one, part, f"{name}[{at}]", strict)
                for at, (one, part) in enumerate(zip(args, value, strict=True))
            )
    if origin in (dict, Mapping) and isinstance(value, dict):
        return _items(args[1], value.items(), f"{name}.", "", strict)
    if kind is float and (type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)):
        return value
    if (kind is int and type(value) is int) or (kind in (str, bool) and type(value) is kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (dict, list) and isinstance(value, kind):
        return value
    raise ValueError(f"{name} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")


def _items(kind: Any, items: Iterable[tuple[Any, Any]], before: str, after: str, strict: bool) -> dict[Any, Any]:
    found = {}
    for key, value in items:
        try:
            found[key] = _read(kind, value, f"{before}{key}{after}", strict)
        except ValueError:
            if strict:
                raise
    return found


def _empty(kind: Any) -> Any:
    """What stands for a value that cannot be read."""
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json({}, strict=False)
    plain = get_origin(kind) or kind
    return math.nan if plain in (int, float) else plain() if plain in (str, bool, dict, list, tuple) else None
