"""Requests with a limit of time: an answer within seconds, or an error.

The libraries that fetch models wait for a minute and more where nothing answers, and looking up a
name has no limit at all. So a short request of our own comes before each of theirs.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from keyfilters.errors import KeyFiltersError

__all__ = [
    "ask_first",
    "cache_folder",
    "hub_answers",
    "hub_offline",
    "open_address",
    "require_answer",
    "timeout",
]

SECONDS = 5.0
VARIABLE = "KEYFILTERS_TIMEOUT"
REMEMBERED = 60.0  # seconds
SILENT: dict[str, tuple[float, str]] = {}  # host → until when, and why
SWITCH = "HF_HUB_OFFLINE"
OFFLINE = "connect this machine, or fetch it on another one and give the file"


class Closes(Protocol):
    """An answer that is closed if it comes too late."""

    def close(self) -> object:
        """Close the connection."""


T = TypeVar("T", bound=Closes)


def timeout() -> float:
    """Return how many seconds an answer may take: ``$KEYFILTERS_TIMEOUT``, or 5.

    Raises:
        KeyFiltersError: the variable is no number above 0.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or SECONDS)
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and seconds > 0):
        raise KeyFiltersError(f"{VARIABLE} is {text!r}; a number of seconds above 0 is expected")
    return seconds


def cache_folder() -> Path:
    """Return the folder of what is fetched: keyfilters in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        KeyFiltersError: there is no home folder.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "keyfilters"
    except RuntimeError as error:
        raise KeyFiltersError(
            "this user has no home folder to keep what is fetched; set XDG_CACHE_HOME to a folder "
            "that can be written"
        ) from error


def open_address(url: str, method: str = "GET") -> Any:
    """Return the answer of an address, whose content has not been read yet.

    Args:
        url: with http or https.
        method: GET, or HEAD for an answer without content.

    Raises:
        OSError: no answer within `timeout`, all steps together, or an error; a read of the content
            that takes longer raises it as well.
    """
    seconds = timeout()
    request = urllib.request.Request(url, headers={"User-Agent": "keyfilters"}, method=method)
    opener = _own_opener() or urllib.request.build_opener()
    return _in_time(lambda: opener.open(request, timeout=seconds), seconds)


def require_answer(url: str) -> None:
    """Raise an error unless something answers at an address; any answer will do.

    A host that did not answer is not asked again for a minute, so that a command which needs many
    of its files waits once.

    Raises:
        ConnectionError: nothing answers within `timeout`.
    """
    host = urllib.parse.urlsplit(url).netloc or url
    until, before = SILENT.get(host, (0.0, ""))
    if time.monotonic() < until:
        raise ConnectionError(before)
    try:
        open_address(url, "HEAD").close()
    except urllib.error.HTTPError as error:  # an answer
        error.close()
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        if not isinstance(reason, ssl.SSLError):  # the library may know other certificates
            message = f"{host} cannot be reached ({reason})"
            if isinstance(reason, TimeoutError):
                SILENT[host] = time.monotonic() + REMEMBERED, message
            raise ConnectionError(message) from error


def hub_answers() -> None:
    """Raise an error unless the Hugging Face hub answers, or its own client is set to be offline.

    Raises:
        ConnectionError: nothing answers within `timeout`.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:  # then the client says so at once
        require_answer(constants.ENDPOINT)


@contextmanager
def hub_offline(*more: Any) -> Iterator[None]:
    """Make the hub's client use its cache only; without an answer it would wait for minutes.

    Args:
        more: further modules with a switch of the same name.
    """
    from huggingface_hub import constants

    before = [(x, getattr(x, SWITCH, False)) for x in (constants, *more)]
    for module, _ in before:
        setattr(module, SWITCH, True)
    try:
        yield
    finally:
        for module, old in before:
            setattr(module, SWITCH, old)


@contextmanager
def ask_first() -> Iterator[None]:
    """Have every download by ``urllib`` in a block begin with `require_answer`.

    Libraries that download by it set no limit of time. Files in their caches need no request. An
    opener that the program has installed stays.
    """
    if getattr(urllib.request, "_opener", None) is not None:
        yield
        return
    urllib.request.install_opener(urllib.request.build_opener(_AskFirst()))
    try:
        yield
    finally:
        urllib.request.install_opener(None)


class _AskFirst(urllib.request.BaseHandler):
    """Calls `require_answer` before each request, and gives the request a limit of time."""

    handler_order = 0

    def http_request(self, request: Any) -> Any:
        require_answer(request.full_url)
        if request.timeout is getattr(socket, "_GLOBAL_DEFAULT_TIMEOUT", None):
            request.timeout = timeout()
        return request

    https_request = http_request


def _own_opener() -> Any:
    """Return the opener that the program has installed, None where it has none."""
    opener: Any = getattr(urllib.request, "_opener", None)
    asking = any(isinstance(x, _AskFirst) for x in getattr(opener, "handlers", []))
    return None if asking else opener


def _in_time(call: Callable[[], T], seconds: float) -> T:
    """Call a function in a thread; return or raise what it does, or an error after so many seconds.

    The thread cannot be stopped: what it returns too late is closed.
    """
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    lock, waiting = threading.Lock(), [True]

    def work() -> None:
        found: T | None = None
        problem: BaseException | None = None
        try:
            found = call()
        except BaseException as error:
            problem = error
        with lock:
            if waiting[0]:
                answers.put((found, problem))
            elif found is not None:
                found.close()

    threading.Thread(target=work, daemon=True).start()
    try:
        found, problem = answers.get(timeout=seconds)
    except Empty:
        with lock:
            waiting[0] = False
        found, problem = None, TimeoutError()
    if isinstance(getattr(problem, "reason", problem), TimeoutError):
        raise TimeoutError(
            f"no answer within {seconds:g} s; for a slow network set {VARIABLE} to more seconds"
        ) from None
    if problem is not None:
        raise problem
    assert found is not None
    return found
