"""Released systems on the command line: a name such as llama-3-8b in the place of a placement's."""

from __future__ import annotations

from typing import Any

from propagate.model import Model, ModelError
from propagate.placement import placement
from propagate.systems import CHANGES, configuration, configurations


def check_name(name: str) -> None:
    """ModelError, with the systems that are known beside the placements, for what is the name of neither.

    Example:
        >>> check_name("prenorm")
    """
    try:
        placement(name)
    except ModelError as error:
        if "unknown" not in str(error):
            raise
        raise ModelError(f"{error}; released systems: {', '.join(configurations())}") from None


def said(context: Any) -> frozenset[str]:
    """Names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def of_system(given: dict[str, dict[str, Any]], options: frozenset[str]) -> dict[str, Any]:
    """A system, its model and its start, with what the options that were given say.

    Args:
        given: values of all options of the network, whose "placement" is the system's name, and of the start if the
            command has them.
        options: names of those that were given.

    Raises:
        ModelError: for an option that would change the system's sizes.

    Example:
        >>> network = {"placement": "gpt-2", "depth": 3, "heads": 8}
        >>> of_system({"model": network}, frozenset({"placement", "depth"}))["model"].depth
        3
    """
    network = given["model"]
    system = configuration(network["placement"])
    wanted = {option for option in options & set(network) if option != "placement"}
    if own := sorted(wanted - set(CHANGES)):
        raise ModelError(f"--{own[0].replace('_', '-')} must be left out with {system.name}, which has its own sizes")
    changes = {option: network[option] for option in wanted}
    found: dict[str, Any] = {"model": Model.from_config(system.name, **changes), "system": system}
    if "start" in given:
        start = system.start()
        found["start"] = given["start"] | {name: getattr(start, name) for name in given["start"] if name not in options}
    return found
