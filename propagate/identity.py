"""What a network is drawn from, as plain data: fields, and the text of whatever code decides a draw.

Two runs may share a file only if these are equal. Of a placement or a scaling, a class anybody may edit, that takes
more than its name: the text of its methods, and of what they read in their module (a constant, a helper, a base class).
Comments, docstrings and layout do not count. Code whose text cannot be had (typed at a prompt), or whose file has
changed since it was imported, is identified by its bytecode.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import linecache
import re
import site
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

LONG = 64  # entries beyond which a sequence is kept by its hash
GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__")
"""Methods that `dataclass` writes, as the fields say."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def described(value: Any) -> Any:
    """Plain data, fit for JSON, that are equal for two values only if the same draws come of both.

    Instances are their class and their fields, functions and classes their text and what it reads. Of what is installed
    (the standard library, a dependency, the machinery of this package) the name stands for the text.

    Example:
        >>> from propagate.scaling import ScaleInit
        >>> described(ScaleInit(0.5))["fields"]
        {'exponent': 0.5, 'per': 'block'}
        >>> described(ScaleInit(0.5))["class"]["gains"]["text"].splitlines()[-1]
        '    return Gains(attention_out=gain, ffn_out=gain)'
    """
    return _Description().of(value)


def digest(description: Any) -> str:
    """A short name for a description.

    Example:
        >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
        True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def simulation_digest() -> str:
    """A short name for the text of this package that a simulation runs: `montecarlo/`, and what describes a network."""
    return text_digest("montecarlo")


@functools.cache
def text_digest(witness: str) -> str:
    """A short name for the text of a witness, and of what describes a network."""
    package = Path(__file__).parent
    files = sorted([*package.glob("*.py"), *package.glob(f"{witness}/**/*.py")])
    return digest([[path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")] for path in files])


def differences(stored: Any, now: Any, place: str = "") -> list[str]:
    """In words, where two descriptions differ.

    Example:
        >>> differences({"seed": 0, "block": {"text": "y = x\\nreturn y"}}, {"seed": 1, "block": {"text": "return x"}})
        ['seed (0 there, 1 now)', "block ('y = x' there, 'return x' now)"]
    """
    if stored == now:
        return []
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        found = []
        for key in dict.fromkeys([*stored, *now]):
            inner = place if key in ("text", "code", "class", "fields", "reads") else f"{place}.{key}".lstrip(".")
            found += differences(stored.get(key), now.get(key), inner)
        return list(dict.fromkeys(found))
    if isinstance(stored, str) and isinstance(now, str):
        stored, now = _first_change(stored, now)
    return [f"{place} ({_short(stored)} there, {_short(now)} now)"]


def _first_change(one: str, other: str) -> tuple[str, str]:
    """The first line in which two texts differ."""
    lines = [text.splitlines() for text in (one, other)]
    at = next((i for i, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), min(map(len, lines)))
    first, second = (text[at].strip() if at < len(text) else "" for text in lines)
    return first, second


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = repr(value) if not isinstance(value, Mapping) else "other"
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Description:
    """Describes each function and class once; where it is met again its name stands for it."""

    def __init__(self, by_text: bool = True) -> None:
        self.by_text = by_text
        self.packages: set[str] = set()  # of placements and scalings: they are read even where they are installed
        self.met: set[Any] = set()

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | complex):
            return value if value == value and abs(value) != float("inf") else repr(value)
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, Mapping):
            return {str(key): self.of(entry) for key, entry in sorted(value.items(), key=lambda pair: str(pair[0]))}
        if isinstance(value, set | frozenset):
            return sorted((self.of(entry) for entry in value), key=json.dumps)
        if isinstance(value, tuple | list):
            entries = [self.of(entry) for entry in value]
            return entries if len(entries) <= LONG else {"entries": len(entries), "sha256": digest(entries)}
        if isinstance(value, type):
            return self.of_class(value)
        if isinstance(value, ModuleType):
            return value.__name__
        return self.of_callable(value) if callable(value) else self.of_instance(value)

    def by_name(self, module: str | None) -> bool:
        """Whether the name of what a module has, and the versions beside it, say what it does."""
        if _top(module) == "propagate":
            return module not in ("propagate.placements", "propagate.scaling")
        return _installed(module) and _top(module) not in self.packages

    def of_callable(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self.of_function(value)
        if isinstance(value, MethodType):
            return {"of": self.of(value.__self__), "method": self.of(value.__func__)}
        if isinstance(value, functools.partial):
            return {"function": self.of(value.func), "args": self.of(value.args), "keywords": self.of(value.keywords)}
        if hasattr(value, "__wrapped__"):
            return self.of(value.__wrapped__)
        return self.of_instance(value)

    def of_instance(self, value: Any) -> Any:
        kind = type(value)
        if hasattr(value, "dtype") and hasattr(value, "tobytes"):  # an array, or a number of NumPy
            return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": self.of(value.tobytes())}
        if callable(getattr(value, "gains", None)):
            self.packages.add(_top(kind.__module__))
        if dataclasses.is_dataclass(value):
            return {
                "class": self.of_class(kind),
                "fields": {name: self.of(one) for name, one in _stated(value).items()},
            }
        if self.by_name(kind.__module__):
            return {"class": _name(kind), "value": ADDRESS.sub("", repr(value))}
        if id(value) in self.met:
            return _name(kind)
        self.met.add(id(value))
        return {"class": self.of_class(kind), "fields": self.of(getattr(value, "__dict__", {}))}

    def of_class(self, kind: type) -> Any:
        if kind in self.met or self.by_name(kind.__module__):
            return _name(kind)
        self.met.add(kind)
        bases = {_name(base): self.of_class(base) for base in kind.__bases__ if not self.by_name(base.__module__)}
        return {"name": kind.__qualname__} | bases | {name: self.of(member) for name, member in _members(kind).items()}

    def of_function(self, function: FunctionType) -> Any:
        if function in self.met or self.by_name(function.__module__):
            return _name(function)
        self.met.add(function)
        code, names = function.__code__, dict.fromkeys(_names_in(function.__code__))
        closed = inspect.getclosurevars(function).nonlocals
        reads = {name: closed.get(name, function.__globals__.get(name)) for name in [*closed, *names]}
        seen = {name: value for name, value in reads.items() if value is not None and not _special(name)}
        for name, value in seen.items():
            if isinstance(value, ModuleType) and not self.by_name(
                value.__name__
            ):  # its attributes stand among the names
                seen[name] = {inner: getattr(value, inner) for inner in names if hasattr(value, inner)}
        given = {"defaults": function.__defaults__, "keywords": function.__kwdefaults__, "reads": seen}
        text = _text(code) if self.by_text else None
        written = {"text": text} if text is not None else {"code": digest(_plain(code)), "python": sys.version_info[:2]}
        return written | {name: self.of(value) for name, value in given.items() if value}


def same_code(one: type, other: type) -> bool:
    """Whether two classes of this process do the same: their bytecode, what it reads, fields and bases."""
    return bool(_in_process(one) == _in_process(other))


def _in_process(kind: type) -> Any:
    description = _Description(by_text=False)
    description.packages.add(_top(kind.__module__))
    return description.of_class(kind), _fields(kind)


def _fields(kind: type) -> list[str]:
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    given = [(field.name, field.type, field.default, field.default_factory) for field in fields]
    return [ADDRESS.sub("", repr(field)) for field in given]


def _stated(value: Any) -> dict[str, Any]:
    """A dataclass's fields, as the instance would be pickled: of a function that was evaluated, what came of it."""
    state = value.__getstate__()
    known = state if isinstance(state, dict) else {}
    names = [field.name for field in dataclasses.fields(value)]
    return {name: known[name] if name in known else getattr(value, name) for name in names}


def _members(kind: type) -> dict[str, Any]:
    """What is written in a class, without its fields and what Python and `dataclass` leave there."""
    fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    bare = {name: _bare(member) for name, member in sorted(vars(kind).items()) if name not in fields}
    return {
        name: member
        for name, member in bare.items()
        if (isinstance(member, FunctionType) or not (_special(name) or name.startswith("_abc_")))
        and not (name in GENERATED and inspect.unwrap(member).__code__.co_filename == "<string>")
    }


def _special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _bare(member: Any) -> Any:
    """The function behind a descriptor."""
    if isinstance(member, staticmethod | classmethod):
        return _bare(member.__func__)
    if isinstance(member, property):
        return _bare(member.fget)
    return _bare(member.func) if isinstance(member, functools.cached_property) else member


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _plain(code: CodeType) -> Any:
    """Bytecode without places: what it does, wherever it stands and whatever its docstring says."""
    constants = [
        _plain(constant)
        if isinstance(constant, CodeType)
        else sorted(map(repr, constant))
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    documented = bool(code.co_consts) and isinstance(code.co_consts[0], str) and code.co_flags & inspect.CO_OPTIMIZED
    constants = ["", *constants[1:]] if documented and _is_docstring(code) else constants
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


def _is_docstring(code: CodeType) -> bool:
    """Whether the first constant, a string, is the docstring: then no instruction loads it."""
    import dis

    return not any(step.opname == "LOAD_CONST" and step.arg == 0 for step in dis.get_instructions(code))


def _text(code: CodeType) -> str | None:
    """The text of a function, without comments and docstrings, if what its file has now is what runs."""
    if code.co_name == "<lambda>":  # its line holds more than itself
        return None
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)
    try:
        if not any(_plain(found) == _plain(code) for found in _functions("".join(lines), code.co_firstlineno)):
            return None
        tree = ast.parse(textwrap.dedent("".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))))
    except (SyntaxError, ValueError, IndexError, tokenize.TokenError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _functions(text: str, line: int) -> list[CodeType]:
    """Those that begin in this line of a file."""
    return [code for code in _compiled(text) if code.co_firstlineno == line]


@functools.lru_cache(maxsize=16)
def _compiled(text: str) -> tuple[CodeType, ...]:
    def within(code: CodeType) -> Iterator[CodeType]:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield constant
                yield from within(constant)

    return tuple(within(compile(text, "text", "exec", dont_inherit=True)))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


@functools.lru_cache(maxsize=256)
def _installed(module: str | None) -> bool:
    """Whether a module comes with Python or was installed."""
    top = _top(module)
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if top == "__main__" or (file is None and top not in sys.stdlib_module_names):
        return False
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return top in sys.stdlib_module_names or any(Path(str(file)).is_relative_to(folder) for folder in folders)
