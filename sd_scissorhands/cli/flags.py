"""Flags of a command, made from the declarations of its settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..declaration import PANELS, declared_of


def with_flags_of(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every declared field of some settings that is not for files alone.

    The command is called with the fields that were given, by name, as its first argument, and with its own parameters.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        made = [parameter for parameter in flags_of(kind) if parameter.name not in {one.name for one in own}]

        @functools.wraps(command)
        def with_given(**typed: Any) -> None:
            given = {parameter.name: typed.pop(parameter.name) for parameter in made}
            command({name: _plain(kind, name, value) for name, value in given.items() if value is not None}, **typed)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*made, *own)]
        with_given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_given.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_given

    return decorate


def flags_of(kind: type) -> Iterator[inspect.Parameter]:
    """The flags of some settings as parameters of a command: panel by panel, those of the settings' own class first."""
    hints, shared = typing.get_type_hints(kind), typing.get_type_hints(kind.__mro__[1])
    fields = sorted(dataclasses.fields(kind), key=lambda field: (_panel(field), field.name in shared))
    for field in fields:
        declared = declared_of(field)
        if declared is None or declared.level == "file":
            continue
        names = [declared.flag or "--" + field.name.replace("_", "-")]
        one, repeatable = _typed(hints[field.name]), False
        if typing.get_origin(one) is tuple:
            one, repeatable = str, not declared.listed
        if one is bool and field.default is not False:
            names = [f"{names[0]}/--no-{names[0][2:]}"]
        choices = f": {', '.join(declared.allowed)}" if declared.allowed else ""
        option = typer.Option(
            *names, help=declared.help.replace("{choices}", choices), show_default=declared.default_text or False,
            rich_help_panel=declared.panel,
        )  # fmt: skip
        annotation = Annotated[(list[one] if repeatable else one) | None, option]  # type: ignore[valid-type]
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _panel(field: dataclasses.Field) -> int:
    declared = declared_of(field)
    return PANELS.index(declared.panel) if declared and declared.panel in PANELS else len(PANELS)


def _typed(hint: Any) -> Any:
    """A field's type without None."""
    kinds = [one for one in typing.get_args(hint) if one is not type(None)]
    return kinds[0] if kinds and typing.get_origin(hint) is not tuple else hint


def _plain(kind: type, name: str, value: Any) -> Any:
    """A flag's value as the settings hold it: tuples for lists, text for paths."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    declared = declared_of(field)
    if declared and declared.listed:
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value
