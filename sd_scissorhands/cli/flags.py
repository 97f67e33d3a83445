"""Flags of a command, made from the declarations of its settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from ..declaration import BASIC, PANELS, Declared, declared_of
from ..errors import UsageError
from ..methods.edits import EDITS
from ..methods.scorers import SCORERS
from ..parsing import choose, shortened
from ..settings import flag

Field = tuple[str, Any, Declared, bool]  # name, type, declaration, whether it must be given
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}  # of the value that a flag takes, as --help shows it
EVERY = "every flag"  # in a context's meta where --help-all was given


def _help_all(ctx: typer.Context, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        ctx.meta[EVERY] = True
        print(ctx.get_help())
        raise typer.Exit


HelpAll = Annotated[bool, typer.Option("--help-all", is_eager=True, hidden=True, callback=_help_all)]
HELP_ALL = inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll)


def with_flags_of(kind: type, more: Sequence[Field] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every declared field of some settings that is not for files alone, and --help-all.

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
        def with_given(help_all: bool, **typed: Any) -> None:
            given = {parameter.name: typed.pop(parameter.name) for parameter in made}
            command({name: _plain(fields[name], value) for name, value in given.items() if value is not None}, **typed)

        return _signed(with_given, (*made, *own, HELP_ALL))

    return decorate


def with_kinds(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose flags say what kind of value they take."""
    return _signed(command, tuple(inspect.signature(command, eval_str=True).parameters.values()))


def _signed(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a command these parameters, each with the kind of its value."""
    for one in parameters:
        hint, option = typing.get_args(one.annotation)
        if option.metavar is None and isinstance(option, OptionInfo):
            option.metavar = KINDS.get(_item(hint))
    named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    command.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in named}
    return command


# ---------------------------------------------------------------- help


class _Help:
    """Of a command with basic flags --help shows these alone; --help-all shows all. A switch is shown as --x / --no-x."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """See click."""
        shown = copy(self)
        shown.add_help_option = False
        basic = [one for one in self.params if getattr(one, "rich_help_panel", None) == BASIC]
        if basic and EVERY not in ctx.meta:
            shown.epilog = f"All flags: {ctx.command_path} --help-all"
            shown.params = basic
        shown.params = [_as_shown(one) for one in shown.params]
        super(_Help, shown).format_help(ctx, formatter)  # type: ignore[misc]


def _as_shown(parameter: Any) -> Any:
    """A parameter with both names of a switch in one, and without a type where it takes no value."""
    shown = copy(parameter)
    if getattr(parameter, "is_flag", False):
        shown.metavar = ""
    if parameter.param_type_name == "argument":
        shown.display_type_rich = lambda ctx: None  # of newer versions of typer; the name is all there is to show
    if shown.secondary_opts:
        shown.opts, shown.secondary_opts = [" / ".join((*shown.opts, *shown.secondary_opts))], []
    return shown


class Command(_Help, TyperCommand):
    """A command with readable help."""


class Group(_Help, TyperGroup):
    """All commands, with readable help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click; a command that there is not is our error, with the nearest one."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(f"{args[0]!r} is no command{choose(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class CommandWithOwnFlags(Command):
    """A command that also takes what scorers and edits declare as flags: --damping 0.2 is --set damping=0.2.

    Their files import torch, so that they are not read for help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; other flags that nobody declares are its errors."""
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        rewritten, rest = [], iter(args)
        for word in rest:
            head, sign, value = word.partition("=")
            if head.startswith("--") and head not in known and _is_own_setting(head[2:].replace("-", "_"), args):
                value = value if sign else next(rest, "")
                word = f"--set={head[2:]}={value}"
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


def _is_own_setting(name: str, words: Sequence[str]) -> bool:
    """Whether a scorer or an edit declares a setting; their files are not imported for help, nor for a name that none holds."""
    if {"--help", "--help-all"} & {*words} or not any(one.may_declare(name) for one in (SCORERS, EDITS)):
        return False
    from ..methods.method import declared_settings

    return name in declared_settings()


def fields_of(kind: type, *, files: bool = False) -> list[Field]:
    """The declared fields of some settings that a flag gives, those of the settings' own class first.

    Args:
        files: also those that only a settings file gives.
    """
    hints, shared = typing.get_type_hints(kind), typing.get_type_hints(kind.__mro__[1])
    found: list[Field] = []
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name in shared):
        declared = declared_of(field)
        if declared and (files or declared.level != "file"):
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
    listed = declared.examples or declared.choices
    option = typer.Option(
        *names, help=declared.text, show_default=declared.default_text or False, metavar="NAME" if listed else None,
        rich_help_panel=BASIC if declared.level == "basic" else declared.panel,
        autocompletion=_completion(declared) if listed else None,
    )  # fmt: skip
    kind: Any = list[one] if repeatable else one  # type: ignore[valid-type]
    annotation: Any = Annotated[kind if required else kind | None, option]  # type: ignore[valid-type]
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _completion(declared: Declared) -> Callable[[str], list[str]]:
    """What a shell completes a value to, or the last one of a list with commas."""

    def names(incomplete: str) -> list[str]:
        """Those of the declared names that begin so."""
        before = incomplete[: incomplete.rfind(",") + 1]
        return [before + name for name in declared.names if (before + name).startswith(incomplete)]

    return names


def _place(declared: Declared) -> int:
    """Where a field's panel stands in help."""
    panel = BASIC if declared.level == "basic" else declared.panel
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


def _item(hint: Any) -> Any:
    """The type of one value of a flag."""
    one = _single(hint)
    return typing.get_args(one)[0] if typing.get_origin(one) is list else one


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
