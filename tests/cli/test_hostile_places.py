"""Every verb in folders that cannot be written to, and in odd ones that can."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keyfilters.cli import main
from tests.cli.places import (
    COMMANDS,
    call,
    contents,
    fault,
    half_written,
    prepare,
    verb_of,
    verbs,
    words,
)

EXPERIMENTS = [x for x in verbs() if x.startswith("experiment ") and x != "experiment page"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True)
def _few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the verb sources look through no packages: that takes seconds."""
    monkeypatch.setattr("keyfilters.sources.packages.installed_model_files", dict)


def test_every_verb_is_tried() -> None:
    assert {verb_of(x) for x in COMMANDS} | set(EXPERIMENTS) == set(verbs())


def refusing(number: int, below: Path) -> Callable[[Any], Callable[..., Any]]:
    """Return what lets a function of the system fail for paths below a folder."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def refused(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and below in Path(path).parents:
                raise OSError(number, os.strerror(number), os.fspath(path))
            return function(path, *args, **options)

        return refused

    return wrap


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "out"


PLACES: dict[str, Callable[[Path], Path]] = {
    "below a file": below_a_file,
    "a long name": lambda folder: folder / ("x" * 256) / "out",
    "a long path": lambda folder: folder.joinpath(*["名" * 60] * 30),
    "read-only": lambda folder: folder / "new" / "out",
    "full": lambda folder: folder / "new" / "out",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_cannot_be_made_is_one_sentence(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    out = PLACES[place](tmp_path)
    number = {"read-only": errno.EROFS, "full": errno.ENOSPC}.get(place)
    if number is not None:
        monkeypatch.setattr(os, "mkdir", refusing(number, tmp_path)(os.mkdir))
    before, wrong = contents(tmp_path), {}
    for name in {*COMMANDS, *verbs()}:
        code, error = call(words(name, files, out))
        said, left = fault(code, error, tmp_path), half_written("", before, tmp_path)
        if said or left:
            wrong[name] = f"{said} {left or ''}"
    assert wrong == {}


def test_a_file_in_the_place_of_the_folder(files: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for name in {*COMMANDS, *verbs()}:
        code, error = call(words(name, files, tmp_path / "out"))
        assert fault(code, error, tmp_path) == "", name
    assert contents(tmp_path) == {"out": b"mine"}


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes; the system itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1, 2000])
@pytest.mark.parametrize("name", COMMANDS)
def test_files_that_cannot_be_finished_leave_nothing(
    files: Path, tmp_path: Path, name: str, size: int
) -> None:
    out = tmp_path / "new" / "out"
    with at_most(size):
        code, error = call(words(name, files, out))
    assert fault(code, error, tmp_path) == ""
    assert half_written(name, {}, tmp_path) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_places_are_written_to_and_survive_a_failure(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Blanks, other letters, bytes that are no letters, long names; no links, locks or home."""
    parts = ["a b  ü", "名前 🙂", "x" * 255, os.fsdecode(b"caf\xe9"), "[bold]{0}"]
    out = tmp_path.joinpath(*parts)
    try:
        out.mkdir(parents=True)
    except OSError:
        out = tmp_path.joinpath(*parts[:3], parts[4])  # a file system of other letters only
    links = refusing(errno.EPERM, tmp_path)
    for function in ("link", "symlink"):
        monkeypatch.setattr(os, function, links(getattr(os, function)))
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "")))
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(RuntimeError):
        Path.home()
    assert call(words(name, files, out)) == (0, "")
    before = contents(tmp_path)
    assert any(x for x in before.values()) and not any(".unfinished" in x for x in before)
    with at_most(1):
        code, error = call(words(name, files, out))
    assert fault(code, error, tmp_path) == ""
    assert half_written("", before, tmp_path) == []
    monkeypatch.setenv("HOME", str(files / "net.pth"))  # which is no folder
    assert call(words(name, files, out)) == (0, "")
    assert contents(tmp_path).keys() == before.keys()


def test_a_terminal_without_the_letters_of_a_name(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = io.BytesIO()
    out = tmp_path / "名前 ü"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["keyfilters", *words("read", files, out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert b"\\xd7" in held.getvalue() and (out / "bank.safetensors").exists()


def test_file_systems_that_are_full_or_read_only(tmp_path: Path) -> None:
    """On mounted file systems, where they may be mounted."""
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    mount = [*alone, "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    run = [*alone, sys.executable, "-W", "error", "-m", "tests.cli.places", str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
