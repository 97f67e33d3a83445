"""Flags of a command, made from the declarations of its settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..declaration import PANELS, Declared, declared_of
from ..errors import UsageError
from ..parsing import shortened
from ..settings import flag

Field = tuple[str, Any, Declared, bool]  # name, type, declaration, whether it must be given


def with_flags_of(kind: type, more: Sequence[Field] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every declared field of some settings that is not for files alone.

    The command is called with the fields that were given, by name, as its first argument, and with its own parameters.

    Args:
        more: fields that are declared elsewhere.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        """The command with a flag for each field, and its settings as the first argument."""
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        fields = {field[0]: field for field in (*fields_of(kind), *more)}
        ordered = sorted(fields.values(), key=lambda field: _place(field[2]))
        made = [_flag(field) for field in ordered if field[0] not in {one.name for one in own}]

        @functools.wraps(command)
        def with_given(**typed: Any) -> None:
            given = {parameter.name: typed.pop(parameter.name) for parameter in made}
            command({name: _plain(fields[name], value) for name, value in given.items() if value is not None}, **typed)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*made, *own)]
        with_given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_given.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_given

    return decorate


class CommandWithOwnFlags(TyperCommand):
    """A command that also takes what scorers and edits declare as flags: --damping 0.2 is --set damping=0.2.

    Their files import torch, so that they are not read for --help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; other flags that nobody declares are its errors."""
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        rewritten, rest = [], iter(args)
        for word in rest:
            head, sign, value = word.partition("=")
            if head.startswith("--") and head not in known and head[2:].replace("-", "_") in _own_settings(args):
                value = value if sign else next(rest, "")
                word = f"--set={head[2:]}={value}"
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


def _own_settings(words: Sequence[str]) -> Collection[str]:
    """The settings that scorers and edits declare; none where --help is among the words."""
    if "--help" in words:
        return ()
    from ..methods.method import declared_settings

    return declared_settings()


def fields_of(kind: type) -> list[Field]:
    """The declared fields of some settings that a flag gives, those of the settings' own class first."""
    hints, shared = typing.get_type_hints(kind), typing.get_type_hints(kind.__mro__[1])
    found: list[Field] = []
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name in shared):
        declared = declared_of(field)
        if declared and declared.level != "file":
            if type(field.default) in (int, float) and not declared.default_text:
                declared = dataclasses.replace(declared, default_text=f"{field.default:g}")
            found.append((field.name, hints[field.name], declared, field.default is dataclasses.MISSING))
    return found


def _flag(field: Field) -> inspect.Parameter:
    """The flag of a field, as a parameter of a command."""
    name, hint, declared, required = field
    names = [declared.flag or "--" + name.replace("_", "-")]
    one, repeatable = _single(hint), False
    if typing.get_origin(one) is tuple:
        one, repeatable = str, not declared.listed
    names_shown = declared.examples() if callable(declared.examples) else declared.examples or declared.allowed
    choices = f": {', '.join(names_shown)}" if names_shown else ""
    option = typer.Option(
        *names, help=declared.help.replace("{choices}", choices), show_default=declared.default_text or False,
        rich_help_panel=declared.panel,
    )  # fmt: skip
    kind: Any = list[one] if repeatable else one  # type: ignore[valid-type]
    annotation: Any = Annotated[kind if required else kind | None, option]  # type: ignore[valid-type]
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _place(declared: Declared) -> int:
    """Where a field's panel stands in --help."""
    return PANELS.index(declared.panel) if declared.panel in PANELS else len(PANELS)


def _single(hint: Any) -> Any:
    """A field's type without None."""
    kinds = [one for one in typing.get_args(hint) if one is not type(None)]
    return kinds[0] if kinds and typing.get_origin(hint) is not tuple else hint


def _plain(field: Field, value: Any) -> Any:
    """A flag's value as the settings hold it: tuples for lists."""
    name, hint, declared, _ = field
    if declared.listed:
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not words:
            raise UsageError(f"{flag(name)} {value!r} names none")
        kind = typing.get_args(_single(hint))[0]
        try:
            return tuple(kind(word) for word in words)
        except ValueError:
            raise UsageError(f"{flag(name)} {shortened(value)} is no list of numbers, such as 1,2,4") from None
    return tuple(value) if isinstance(value, list) else value
