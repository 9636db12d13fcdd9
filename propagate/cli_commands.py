"""The commands there are, listed with what each says of itself.

A command's options, which are read off the fields of a network, are made where it runs or its own help is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

Command = Callable[..., None]
_KNOWN: dict[str, tuple[Command, Callable[[Command], Command]]] = {}


def _as_it_is(command: Command) -> Command:
    return command


def command(options: Callable[[Command], Command] = _as_it_is) -> Callable[[Command], Command]:
    """A decorator: the function is a command of its own name; `options` gives it more than its own parameters."""

    def known(function: Command) -> Command:
        _KNOWN[function.__name__] = (function, options)
        return function

    return known


def whole(name: str) -> Any:
    """A command by its name, with its options, as Typer makes it."""
    function, options = _KNOWN[name]
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(name)(options(function))
    return get_command(alone)


class Commands(TyperGroup):
    """All of them, each by what it says of itself; the one that runs is made whole."""

    def __init__(self, **attributes: Any) -> None:
        listed = {name: TyperCommand(name, help=inspect.getdoc(function)) for name, (function, _) in _KNOWN.items()}
        super().__init__(**attributes | {"commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and whole(str(listed.name)), rest
