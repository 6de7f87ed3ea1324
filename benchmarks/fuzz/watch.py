"""What a process does beside reading its input: programs, connections, code, other files."""

from __future__ import annotations

import glob
import os
import re
import site
import socket
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

__all__ = ["Watch"]

ROOT = Path(__file__).parents[2]
STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.startfile",
           "pty.spawn", "os.fork", "ctypes.dlopen")  # fmt: skip
CONNECTED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind")
CHANGED = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
           "shutil.rmtree", "os.truncate", "os.chmod")  # fmt: skip
OWN = (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *site.getsitepackages(),
       str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks"))  # fmt: skip
HARMLESS = ("/dev/null", "/dev/urandom", "/proc/", "/sys/", "/etc/mime.types",
            "/usr/share/zoneinfo")  # fmt: skip
PICKLED = ("torch", "numpy", "collections", "_codecs", "keyfilters", "timm")  # roots of modules
TYPED = re.compile(r"[?&=,#\n\0'\"\[\] ]+|(?<=[a-z]):")  # between the parts of a text


class Watch:
    """Notes every event outside the folder given, with an audit hook that stays to the end.

    Args:
        folder: a process may open and write anything below these folders.

    Attributes:
        seen: what it did otherwise, counted.
    """

    def __init__(self, *folder: Path) -> None:
        self.folder = tuple(os.path.realpath(x) for x in folder)
        self.seen: Counter[str] = Counter()
        self._on = False
        self._typed: tuple[str, ...] = ()
        self._connects = False
        sys.addaudithook(self._look)
        socket.socket.connect = _refuse  # type: ignore[assignment,method-assign]
        socket.getaddrinfo = self._resolve  # type: ignore[assignment]

    def begin(self, text: str) -> None:
        """Begin to look; files and addresses that the text itself names may be opened."""
        values = [x.partition("=")[2] for x in text.split("&")]  # a path may have an = in it
        parts = [x.removeprefix("file://") for x in (text, *values, *TYPED.split(text)) if x]
        self._typed = tuple({_real(y) for x in parts for y in (x, *_matching(x))})
        self._connects = "://" in text
        self._on = True

    def end(self) -> dict[str, int]:
        """Stop looking, and return what was seen."""
        self._on = False
        found = dict(self.seen)
        self.seen.clear()
        return found

    def _resolve(self, *_: Any, **__: Any) -> Any:
        if self._on and not self._connects:
            self.seen["asks for an address"] += 1
        raise socket.gaierror(-2, "there is no network here")

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in STARTED or (event in CONNECTED and not self._connects):
            if event == "ctypes.dlopen" and str(arguments[0]).startswith((*OWN, "None")):
                return
            self.seen[f"{event} {arguments[:2]!r}"[:120]] += 1
        elif event == "pickle.find_class":
            if str(arguments[0]).partition(".")[0] not in PICKLED:
                self.seen[f"a pickle takes {arguments[0]}.{arguments[1]}"[:120]] += 1
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            if not name.startswith(("<", *OWN)):
                self.seen[f"runs code of {name}"] += 1
        elif event == "open" and isinstance(arguments[0], str | bytes):
            self._opened(os.fsdecode(arguments[0]), str(arguments[1] or "r"))
        elif event in CHANGED:
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100
            if not _below(path, (*self.folder, "/dev/null")):
                self.seen[f"{event} {path[:80]}"] += 1

    def _opened(self, name: str, mode: str) -> None:
        path = _real(name.partition("\0")[0])
        written = set(mode) & set("wax+")
        allowed = self.folder if written else (*self.folder, *OWN, *HARMLESS, *self._typed)
        if not _below(path, allowed):
            self.seen[f"opens {path[:80]} ({mode})"] += 1


def _matching(pattern: str) -> list[str]:
    try:
        return glob.glob(pattern)  # noqa: PTH207
    except (OSError, ValueError, re.error):  # no pattern of names
        return []


def _real(name: str) -> str:
    try:
        return os.path.realpath(name.replace("\0", ""))
    except (OSError, ValueError):  # no name of a file: too long, or half a character
        return name


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == x or path.startswith(x.rstrip("/") + "/") for x in folders)


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError(101, "there is no network here")
