"""`propagate explore`: the explorer in a browser of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from propagate.cli_output import refuse
from propagate.model import ModelError


def explore(
    placements: Annotated[list[str] | None, typer.Argument(help="Up to four placements to begin with.")] = None,
    port: Annotated[int, typer.Option(help="To listen on; 0 is any that is free.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,
) -> None:
    """Curves that follow sliders, in a browser of this machine: the address is printed. Needs the extra "explore".

    It answers on 127.0.0.1 alone, until it is interrupted.
    """
    from propagate.explorer.server import Explorer
    from propagate.explorer.state import State

    try:
        server = Explorer(State(placements=tuple(placements)) if placements else State(), port)
    except ModelError as error:
        refuse(error)
    typer.echo(server.address)
    if browser:
        typer.launch(server.address)
    try:
        server.run()
    except KeyboardInterrupt:
        typer.echo("closed", err=True)
