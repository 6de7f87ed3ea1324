"""Iterators of inputs, one a target: each input is a function that returns what went wrong."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .model_files import TARGETS
from .texts import TEXTS, mutated, reader

__all__ = ["INPUTS", "Input", "ended"]

SLOW = (
    "train",
    "experiment",
    "reproduce",
    "discover",
    "atlas",
)  # right words begin minutes of work
COMMANDS = [
    "read net.safetensors --seed 3", "check net.safetensors --off dead --format json",
    "fit keys.txt --method B --operators dx,dy", "compare net.safetensors net.safetensors",
    "replace net.safetensors --keys random:4 --layers dw",
    "init test_efficientnet --scheme center-surround?std=keep --layers *",
    "train recipe.toml --dry-run", "reproduce --list", "atlas net.safetensors --like zoo-5x5",
    "experiment transfer --target digits?samples=100 --epochs 0", "experiment page record.json",
    "discover net.safetensors --size 3 --keys 2 --kinds lines --rounds 1", "--version",
]  # fmt: skip


class Input(NamedTuple):
    """One input.

    Attributes:
        text: what a user would type, for the rules on files that it names.
        run: reads it and returns "" or what went wrong.
    """

    text: str
    run: Callable[[], str]


def ended(read: Callable[[], Any], what: str) -> str:
    """Return "" for a result or an error of one line of ours, else what was raised and where."""
    from keyfilters.errors import KeyFiltersError

    try:
        read()
    except KeyFiltersError as error:
        if "\n" in str(error) and "\n" not in what:
            return f"a message of several lines: {error} ← {what!r}"
    except BaseException as error:
        places = traceback.extract_tb(error.__traceback__)
        ours = [x for x in places if f"{os.sep}keyfilters{os.sep}" in x.filename] or places
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return f"{type(error).__name__} at {place}: {error} ← {what!r}"[:3000]
    return ""


def text_inputs(kind: str, folder: Path, seed: int) -> Iterator[Input]:
    """Yield texts of a kind that were mutated."""
    read, rng = _ready(kind, folder), np.random.default_rng([seed, *kind.encode()])
    while True:
        text = mutated(TEXTS[kind][rng.integers(len(TEXTS[kind]))], rng)
        yield Input(text, lambda text=text: ended(lambda: read(text), text))  # type: ignore[misc]


def drawn_inputs(kind: str, folder: Path, seed: int) -> Iterator[Input]:
    """Yield texts of a kind that hypothesis draws, in lots."""
    import hypothesis

    from .texts import strategy

    read, lot = _ready(kind, folder), list[str]()
    every = list(hypothesis.HealthCheck)
    number, size = seed * 1000, 20
    while True:
        lot.clear()
        settings = hypothesis.settings(max_examples=size, database=None, deadline=None,
                                       phases=[hypothesis.Phase.generate],
                                       suppress_health_check=every)  # fmt: skip
        size = min(500, 5 * size)
        collect = hypothesis.given(strategy(kind))(lambda text: lot.append(text))
        hypothesis.seed(number)(settings(collect))()
        number += 1
        for text in lot:
            yield Input(text, lambda text=text: ended(lambda: read(text), text))  # type: ignore[misc]


def _ready(kind: str, folder: Path) -> Callable[[str], Any]:
    os.chdir(folder)
    read = reader(kind)
    for text in TEXTS[kind]:
        with contextlib.suppress(Exception):
            read(text)  # imports what it needs
    return read


def file_inputs(name: str, folder: Path, seed: int) -> Iterator[Input]:
    """Yield damaged files of a target: cut, or bytes overwritten, inserted or removed."""
    from tests.sources.test_mutations import damaged

    os.chdir(folder)
    target = TARGETS[name]
    path = target.make(folder)
    files = sorted(x for x in folder.rglob("*") if x.is_file())
    whole = {x: x.read_bytes() for x in files}
    rng = np.random.default_rng([seed, *name.encode()])
    with contextlib.suppress(Exception):
        target.read(path)
    for x, content in whole.items():
        x.write_bytes(content)
    beside = set(folder.rglob("*"))
    texts = {x for x in whole if _is_text(whole[x])}
    while True:
        victim = files[rng.integers(len(files))]
        if victim in texts and rng.random() < 0.5:
            content = mutated(whole[victim].decode(), rng).encode("utf-8", "surrogatepass")
        else:
            content = damaged(whole[victim], rng)

        def run(victim: Path = victim, content: bytes = content) -> str:
            victim.write_bytes(content)
            told = ended(lambda: target.read(path), f"{victim.name}: {content.hex()[:4000]}")
            victim.write_bytes(whole[victim])
            for other in set(folder.rglob("*")) - beside:
                told = told or f"left {other.name} beside {victim.name}: {content.hex()[:4000]}"
                shutil.rmtree(other) if other.is_dir() else other.unlink()
            return told

        yield Input(str(path), run)


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode().strip()) and b"\0" not in content
    except UnicodeDecodeError:
        return False


def command_inputs(_: str, folder: Path, seed: int) -> Iterator[Input]:
    """Yield command lines with changed words, options of the verb added."""
    from tests.report.test_experiment_page import example
    from tests.sources.tiny_models import safetensors

    import keyfilters as kf

    os.chdir(folder)
    safetensors(folder)
    kf.KeySet.random(2, 5).save(folder / "keys.txt")
    (folder / "recipe.toml").write_text(TEXTS["recipe"][0])
    import json

    (folder / "record.json").write_text(json.dumps(example()))
    kept = {x: x.read_bytes() for x in folder.iterdir()}
    rng = np.random.default_rng(seed)
    for line in COMMANDS:
        _run(line.split())
    while True:
        words = COMMANDS[rng.integers(len(COMMANDS))].split()
        for _number in range(rng.integers(1, 3)):
            at = int(rng.integers(len(words)))
            words[at] = mutated(words[at], rng).replace("\0", "")
        if any(x in ("-", "/", "//") or x.startswith("/*") for x in words) or "sources" in words:
            continue
        if rng.random() < 0.3 and "page" not in words:
            words += ["--out", f"out{rng.integers(3)}"]

        def run(words: list[str] = words) -> str:
            told = _run(words)
            for x in folder.iterdir():  # what it wrote is no input of the next
                if x not in kept:
                    shutil.rmtree(x) if x.is_dir() else x.unlink()
            for x, content in kept.items():
                x.write_bytes(content)
            return told

        yield Input("\0".join(words), run)


def _run(words: list[str]) -> str:
    from keyfilters.cli import main

    sys.argv = ["keyfilters", *words]
    out, error, code = io.StringIO(), io.StringIO(), 0
    if words[0] in SLOW:  # after a second of work it is told to end
        signal.signal(signal.SIGVTALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_VIRTUAL, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as fault:
            place = traceback.extract_tb(fault.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            return f"{type(fault).__name__} at {where}: {fault} ← {words!r}"[:2000]
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    told = error.getvalue()
    if code not in (0, 1, 2, 128 + signal.SIGTERM) or "Traceback" in told:
        return f"exit code {code} ← {words!r}: {told[-300:]}"
    if code == 2 and "keyfilters: " in told:
        message = told.partition("keyfilters: ")[2]
        if message.count("\n") > 1 or not message.strip().isprintable():
            return f"more than one plain line ← {words!r}: {message[:300]!r}"
    return ""


INPUTS: dict[str, Callable[[str, Path, int], Iterator[Input]]] = {
    "file": file_inputs,
    "text": text_inputs,
    "drawn text": drawn_inputs,
    "command": command_inputs,
}
