"""Options of the command line, made from the fields of the dataclasses that they fill: names, types, defaults, help."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from typing import Annotated, Any

import typer

from propagate.experts import Experts
from propagate.model import Model, ModelError
from propagate.scaling import ScaleInit
from propagate.start import Start

NETWORK, START = "Network", "What enters"
SHORT = {"depth": "-L", "width": "-d", "tokens": "-T", "activation": "-a"}
DEPTH = 24  # of a command that does not say
PLACEMENT = Annotated[
    str,
    typer.Argument(
        help="A placement's name; `propagate placements` lists them. Or a released system's, such as llama-3-8b."
    ),
]
PLAIN = (int, float, str, bool, int | None, float | None, list[str])


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """One option, as a keyword of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def options_of(kind: type, panel: str, **otherwise: Any) -> list[inspect.Parameter]:
    """An option for each field that a word or a number can say.

    Args:
        kind: a dataclass whose docstring has a line for each field; the option's help is its first clause.
        panel: the heading over them.
        otherwise: defaults of fields that have none, or other ones.

    Example:
        >>> [option.name for option in options_of(Start, "What enters")]
        ['variance', 'covariance', 'grad_variance', 'grad_covariance']
    """
    said, types, found = _described(kind), typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        default = otherwise.get(field.name, field.default)
        annotation = type(default) if types[field.name] is Any else _plain(types[field.name])
        if annotation in PLAIN and default is not dataclasses.MISSING:
            names = [f"--{field.name.replace('_', '-')}", *filter(None, [SHORT.get(field.name)])]
            option = typer.Option(*names, help=_clause(said.get(field.name, "")), rich_help_panel=panel)
            found.append(parameter(field.name, Annotated[annotation, option], default))
    return found


def _described(kind: type) -> dict[str, str]:
    """What the docstring's lines under "Attributes:" say, by name."""
    attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", attributes, flags=re.MULTILINE))


def _plain(annotation: Any) -> Any:
    """Of a name or a description, the name; of several names, an option that may be given more than once."""
    if annotation == tuple[str, ...]:
        return list[str]
    return str if str in typing.get_args(annotation) else annotation


def _clause(text: str) -> str:
    """The first clause of a description, as a sentence."""
    first = " ".join(text.split()).replace("`", "").split("; ")[0].split(". ")[0].rstrip(".")
    return first[:1].upper() + first[1:] + "."


@functools.cache
def network_options(depth: int = DEPTH) -> list[inspect.Parameter]:
    """Of a network, of so many blocks by default: the plain fields of a Model, its experts and its scaling."""
    more = {
        "experts": (str | None, "A mixture of experts, COUNT:TOP_K.", None),
        "scale_init": (float | None, "Scale output projections by depth^-EXPONENT.", None),
        "scale_per": (str, "What the scaling counts: block or sublayer.", "block"),
    }
    return [
        parameter("placement", PLACEMENT),
        *(option for option in options_of(Model, NETWORK, depth=depth) if option.name not in ("placement", *more)),
        *(
            parameter(name, Annotated[kind, typer.Option(help=text, rich_help_panel=NETWORK)], default)
            for name, (kind, text, default) in more.items()
        ),
    ]


@functools.cache
def start_options() -> list[inspect.Parameter]:
    """Of what enters: the moments of a Start."""
    return options_of(Start, START)


def model_of(*, scale_init: float | None, scale_per: Any, experts: str | None, **network: Any) -> Model:
    """The network that the options of `network_options` say.

    Example:
        >>> model_of(scale_init=0.5, scale_per="block", experts=None, placement="prenorm", depth=2).scaling
        ScaleInit(exponent=0.5, per='block')
    """
    scaling = None if scale_init is None else ScaleInit(scale_init, scale_per)
    return Model(scaling=scaling, experts=None if experts is None else experts_of(experts), **network)


def experts_of(text: str) -> Experts:
    """A mixture from COUNT:TOP_K.

    Raises:
        ModelError: for anything else.

    Example:
        >>> experts_of("8:2").top_k
        2
    """
    count, _, top_k = text.partition(":")
    if not (count.isdecimal() and top_k.isdecimal()):
        raise ModelError(f"experts must be COUNT:TOP_K, such as 8:2, got {text!r}")
    return Experts(int(count), int(top_k))
