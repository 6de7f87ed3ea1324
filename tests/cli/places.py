"""Every verb of the command line with cheap arguments, and what a failed one may leave behind.

``python -m tests.cli.places FOLDER`` runs them on small and on read-only file systems, which it
mounts in a mount namespace of its own: they are gone when it ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import joblib  # noqa: F401  # it tries to write when it is imported
import numpy as np
import torch
from typer.main import get_command

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.cli import app, main
from keyfilters.sources import packages
from tests.report.test_experiment_page import example

FEW = ("--keys", "3", "--candidates", "8", "--rounds", "1", "--kinds", "kmeans")
RECIPE = """
[model]
name = "test_convnext"
options = { patch_size = 1 }
[data]
samples = 64
[schedule]
steps = 2
[batch]
size = 32
"""
# Those that run to their end here; FILES stands for the folder of `prepare`.
COMMANDS: dict[str, tuple[str, ...]] = {
    "atlas": ("FILES/bank.safetensors", "--seeds", "1"),
    "atlas --like": ("FILES/bank.safetensors", "--like", "zoo-5x5"),
    "check": ("FILES/bank.safetensors",),
    "compare": ("FILES/net.pth", "FILES/net.safetensors"),
    "discover": ("FILES/bank.safetensors", *FEW),
    "experiment page": ("FILES/record.json",),
    "fit": ("FILES/keys.npy", "--operators", "dx,dy", "--method", "A"),
    "init": ("test_convnext",),
    "read": ("FILES/bank.safetensors",),
    "replace": ("FILES/net.pth",),
    "replace timm": ("timm:test_convnext?pretrained=false",),
    "reproduce": ("echos",),
    "sources": (),
    "train": ("FILES/recipe.toml", "--device", "cpu"),
}
FULL = ("read", "replace", "init", "fit", "check", "atlas --like", "train")  # by library
TRAINED = {"train": {"recipe.toml", "metrics.jsonl", "monitor.parquet", "step-0.safetensors"}}


def verbs() -> list[str]:
    """Return every verb that the parser knows, such as "atlas" and "experiment page"."""

    def leaves(command: click.Command, name: str) -> Iterator[str]:
        inside = getattr(command, "commands", None)
        if inside is None:
            yield name
        for key, below in (inside or {}).items():
            yield from leaves(below, f"{name} {key}".strip())

    return sorted(leaves(get_command(app), ""))


def verb_of(name: str) -> str:
    """Return the verb of a key of `COMMANDS`."""
    return name if name in verbs() else name.split()[0]


def prepare(folder: Path) -> None:
    """Write the files that the commands read."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(80, 5, 5)).astype(np.float32)
    kf.FilterBank([Layer("net", "conv", weight, None, None, 0.0)]).save(folder / "bank.safetensors")
    state = {"stem.weight": torch.ones(80, 3, 3, 3), "conv.weight": torch.tensor(weight)[:, None]}
    torch.save(state, folder / "net.pth")
    kf.FilterBank([Layer("net", "conv", weight + 0.1, None, None, 0.0)]).save(
        folder / "net.safetensors"
    )
    np.save(folder / "keys.npy", rng.normal(size=(2, 5, 5)))
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "record.json").write_text(json.dumps(example()))


def words(name: str, files: Path, out: Path) -> list[str]:
    """Return the command line of a key of `COMMANDS`, or of another verb, that writes to `out`."""
    given = COMMANDS.get(name, ())
    target = out / "report.html" if name == "experiment page" else out
    named = [x.replace("FILES", str(files)) for x in given]
    return [*verb_of(name).split(), *named, "--out", str(target)]


def call(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command line here; return its exit code and what it wrote to standard error."""
    code, told = 0, io.StringIO()
    argv, sys.argv = sys.argv, ["keyfilters", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return code, told.getvalue()


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the files of a folder by their names, and its folders."""
    found = sorted(folder.rglob("*"))
    return {str(x.relative_to(folder)): x.read_bytes() if x.is_file() else None for x in found}


def fault(code: int, error: str, path: Path) -> str:
    """Return what is wrong with the end of a command that could not write below a path."""
    start = os.fsencode(path)[:60].decode("utf-8", "replace").partition("\ufffd")[0]
    if code != 2:
        return f"exit code {code}"
    if error.count("\n") != 1 or "Traceback" in error:
        return f"not one sentence: {error}"
    if ".unfinished" in error or start not in error:
        return f"does not name {start}: {error}"
    mended = any(x in error for x in (" give ", " free ", " raise ", " move ", "set TMPDIR"))
    return "" if mended else f"does not say what to do: {error}"


def half_written(name: str, before: dict[str, bytes | None], folder: Path) -> list[str]:
    """Return what a failed command has left or changed below a folder."""
    after = contents(folder)
    changed = {x for x in {*before, *after} if before.get(x, b"") != after.get(x, b"")}
    if name in TRAINED:  # whole files of a run that would go on
        whole = {x for x in changed if Path(x).name in TRAINED[name] or after.get(x, b"") is None}
        changed -= {x for x in whole if ".unfinished" not in x}
    return sorted(changed)


def _mounted(folder: Path) -> dict[str, str]:
    """Run every command on file systems that refuse, and return what is wrong."""
    files, wrong = folder / "files", {}
    packages.installed_model_files = dict  # looking through them takes seconds
    files.mkdir()
    prepare(files)
    for kind, options, names in (
        ("full", "size=4k", FULL),
        ("no inodes", "size=8m,nr_inodes=3", ["read", "train"]),
    ):
        for name in names:
            place = folder / f"{kind} {name}"
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
            code, error = call(words(name, files, place / "new" / "out"))
            said = fault(code, error, place)
            left = half_written(name, {}, place)
            if said or left:
                wrong[f"{kind}: {name}"] = f"{said} {left or ''}".strip()
    place = folder / "read-only"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=True)
    for name in {*COMMANDS, *verbs()}:
        code, error = call(words(name, files, place / "new" / "out"))
        if said := fault(code, error, place):
            wrong[f"read-only: {name}"] = said
    return wrong


if __name__ == "__main__":
    print(json.dumps(_mounted(Path(sys.argv[1]))))
