"""One run of a grid: a row of factors, a seed, and all that decides what comes out."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from keyfilters.errors import KeyFiltersError

__all__ = ["Run", "code_digest", "versions"]

PACKAGES = ("keyfilters", "torch", "timm", "accelerate", "numpy", "scipy")
OWN = "keyfilters"
READERS = f"{OWN}.sources.formats"


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        factors: its row in the table of results: name → number, text, truth value or None.
        seed: 0 or more.
        function: ``module:name`` of ``function(options, seed, folder) -> {name: number, text or
            list}``, which a process of its own imports.
        options: what the function is given; JSON only. The folders of `sources` are added to it
            under that name, where there are any.
        sources: runs whose folders this one reads, by the role they play; they are done first.
        contents: digests of the data and files that the options name.

    Raises:
        KeyFiltersError: a seed below 0, options that are no JSON, or a function that cannot be
            imported.

    >>> run = Run({"scheme": "keys"}, 3, "keyfilters.experiments.reading:read_source", {"lr": 1})
    >>> str(run), run.folder == Run({}, 3, run.function, {"lr": 1}).folder
    ('scheme=keys, seed 3', True)
    """

    factors: Mapping[str, Any]
    seed: int
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Run] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise KeyFiltersError(f"the seed of {self} is {self.seed}; 0 or more is expected")
        for name in ("factors", "options", "contents"):
            try:
                plain = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise KeyFiltersError(f"{name} of {self} are no JSON: {error}") from error
            object.__setattr__(self, name, plain)

    def __str__(self) -> str:
        row = ", ".join(f"{name}={x}" for name, x in self.factors.items() if x is not None)
        return f"{row}, seed {self.seed}" if row else f"seed {self.seed}"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides the result: not the factors, which only name it."""
        return {
            "function": self.function,
            "options": dict(self.options),
            "seed": self.seed,
            "sources": {role: run.key for role, run in self.sources.items()},
            "contents": dict(self.contents),
            "code": code_digest(self.function.partition(":")[0]),
            "versions": versions(),
        }

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits of the identity."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> PurePosixPath:
        """Folder inside the grid's: that of another run of the same identity, and of no other."""
        return PurePosixPath("runs", self.key)


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that compute."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@cache
def code_digest(module: str) -> str:
    """Return 16 hexadecimal digits of the source of a module and of all of keyfilters it imports.

    Imports are followed through the source, also those inside functions; a change anywhere else,
    such as in a page, changes nothing.

    Raises:
        KeyFiltersError: there is no such module.
    """
    todo, seen = [module], dict[str, str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except (ModuleNotFoundError, ValueError):
            spec = None
        if spec is None or not spec.origin or not Path(spec.origin).exists():
            if name == module:
                raise KeyFiltersError(f"there is no module {module}; a run needs one to import")
            continue  # a name inside a module
        source = Path(spec.origin).read_bytes()
        seen[name] = hashlib.sha256(source).hexdigest()
        todo += [x for x in _imported(source) if x.startswith(f"{OWN}.")]
        if name == READERS:  # it imports them by the names of their modules
            room = Path(spec.origin).parent.glob("*.py")
            todo += [f"{READERS.rpartition('.')[0]}.{path.stem}" for path in room]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _imported(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
