"""Pickles without running them: every global is a name, every object what was said about it.

A machine of our own follows the instructions of a pickle. It imports nothing, calls nothing of the
file's choosing, and follows no more instructions than `MOST`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["Global", "Thing", "load_inert"]

MOST = 5_000_000
PLAIN = (str, int, float, bytes, bool, type(None))


@dataclass(eq=False, frozen=True)
class Global:
    """The name of a class or function, which is never imported."""

    name: str


@dataclass(eq=False)
class Thing:
    """An object that is not built: its class, its arguments, and what was put into it.

    Attributes:
        kind: dotted name of its class, or of the function that would make it.
        args: the arguments.
        state: what ``__setstate__`` would get.
        items: what would be set by key.
        listed: what would be appended.
    """

    kind: str
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    listed: list[Any] = field(default_factory=list)


Rebuild = Callable[[Any], Any]  # the arguments -> a value
Persistent = Callable[[Any], Any]

_MARK = object()


def load_inert(
    file: BinaryIO,
    rebuild: Mapping[str, Rebuild] | None = None,
    persistent: Persistent = lambda saved: saved,
) -> Any:
    """Follow one pickle and return its value, which holds only plain values and placeholders.

    Args:
        file: read from where it is, up to the end of this pickle.
        rebuild: what to do for functions that are known, by dotted name.
        persistent: what a persistent id stands for.

    Raises:
        ValueError: the pickle is damaged, or longer than `MOST` instructions.

    >>> import io, pickle
    >>> load_inert(io.BytesIO(pickle.dumps({"a": (1, [2])})))
    {'a': (1, [2])}
    """
    machine = _Machine(rebuild or {}, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST:
                raise ValueError(f"a pickle of more than {MOST} instructions")
            if opcode.name != "STOP":  # the last one, or `genops` raises
                machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self, rebuild: Mapping[str, Rebuild], persistent: Persistent) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.rebuild, self.persistent = rebuild, persistent

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            getattr(self, f"_{name.lower()}")(argument)

    def _marked(self) -> list[Any]:
        """Take everything above the last mark."""
        found: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        return found[::-1]

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        values = self._marked()
        self.stack.append(dict(zip(map(_key, values[::2]), values[1::2], strict=True)))

    def _last(self, count: int) -> None:
        values = self.stack[-count:]
        del self.stack[-count:]
        self.stack.append(tuple(values))

    def _tuple1(self, _: Any) -> None:
        self._last(1)

    def _tuple2(self, _: Any) -> None:
        self._last(2)

    def _tuple3(self, _: Any) -> None:
        self._last(3)

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        _extend(self.stack[-1], [value])

    def _appends(self, _: Any) -> None:
        values = self._marked()
        _extend(self.stack[-1], values)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        _update(self.stack[-1], values)

    def _global(self, argument: str) -> None:
        self.stack.append(Global(".".join(argument.split(" ", 1))))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{module}.{name}" if isinstance(name, str) else "unknown"))

    def _ext1(self, argument: Any) -> None:
        self.stack.append(Global(f"extension.{argument}"))

    _ext2 = _ext4 = _ext1

    def _next_buffer(self, _: Any) -> None:
        raise ValueError("its data lies outside the pickle")

    def _persid(self, argument: Any) -> None:
        self.stack.append(self.persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._made(function, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        args = tuple(self._marked())
        self.stack.append(self._made(Global(".".join(argument.split(" ", 1))), args))

    def _obj(self, _: Any) -> None:
        function, *args = self._marked()
        self.stack.append(self._made(function, tuple(args)))

    def _made(self, function: Any, args: Any) -> Any:
        name = function.name if isinstance(function, Global) else "unknown"
        known = self.rebuild.get(name)
        return Thing(name, args) if known is None else known(args)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Thing):
            self.stack[-1].state = state


def _key(key: Any) -> Any:
    """Return what stands for a key; anything that is costly to hash becomes a name."""
    if isinstance(key, PLAIN):
        return key
    if isinstance(key, tuple) and all(isinstance(x, PLAIN) for x in key):
        return key
    return key.name if isinstance(key, Global) else f"<{type(key).__name__} {id(key)}>"


def _extend(holder: Any, values: list[Any]) -> None:
    if isinstance(holder, list):
        holder.extend(values)
    elif isinstance(holder, Thing):
        holder.listed.extend(values)
    else:
        raise ValueError("its pickle appends to what is no list")


def _update(holder: Any, values: list[Any]) -> None:
    items = holder.items if isinstance(holder, Thing) else holder
    if not isinstance(items, dict) or len(values) % 2:
        raise ValueError("its pickle sets keys of what is no mapping")
    for key, value in zip(values[::2], values[1::2], strict=True):
        items[_key(key)] = value


_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
    ]
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}
