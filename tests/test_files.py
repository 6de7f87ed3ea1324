from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keyfilters.errors import KeyFiltersError, shown
from keyfilters.files import (
    hold_folder,
    move_whole,
    sweep,
    temporary_folder,
    unfinished_folder,
    write_whole,
)

from .interruptions import interrupted_at_every_line


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keyfilters.files.os.fsync", refuse)


def test_a_full_disk_leaves_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "new" / "x", "ω")
    full_disk(monkeypatch)
    message = r"cannot write .*x: No space left on device; the last good file stays; free some"
    with pytest.raises(KeyFiltersError, match=message):
        write_whole(tmp_path / "new" / "x", b"new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x"]
    assert (tmp_path / "new" / "x").read_text(encoding="utf-8") == "ω"
    with pytest.raises(KeyFiltersError, match=r"y: No space left on device; free some"):
        write_whole(tmp_path / "new" / "y", b"new")
    with pytest.raises(KeyFiltersError, match=r"cannot write .*z"):
        write_whole(tmp_path / "new" / "x" / "z", b"new")


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    other = "from pathlib import Path\nfrom keyfilters.files import write_whole\n"
    other += f"write_whole(Path({str(path)!r}), b'other')"
    fsync, seen = os.fsync, []

    def meanwhile(file: int) -> None:
        subprocess.run([sys.executable, "-c", other], check=True)
        seen.append(path.read_bytes())
        fsync(file)

    monkeypatch.setattr("keyfilters.files.os.fsync", meanwhile)
    write_whole(path, b"own")
    assert seen == [b"other"] and path.read_bytes() == b"own"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_removed_while_it_is_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command removes its empty folder when it ends, and so gives back its lock."""
    fcntl = pytest.importorskip("fcntl")
    lock, out = fcntl.flock, tmp_path / "out"

    def late(place: int, how: int) -> None:
        out.rmdir()
        lock(place, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(KeyFiltersError, match="removed by another command"), hold_folder(out):
        pytest.fail("it holds a folder that is gone")
    assert not out.exists()


def test_without_locks_folders_are_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with hold_folder(tmp_path / "out"):
        write_whole(tmp_path / "out" / "x", "x")
    assert (tmp_path / "out" / "x").read_text() == "x"


@pytest.mark.parametrize(("error", "stays"), [(PermissionError, True), (ProcessLookupError, False)])
def test_what_a_process_of_another_user_writes_is_not_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], stays: bool
) -> None:
    unfinished = tmp_path / ".unfinished-4321-0123abcd"
    unfinished.write_text("half")

    def ask(process: int, number: int) -> None:
        assert (process, number) == (4321, 0)
        raise error

    monkeypatch.setattr("keyfilters.files.os.kill", ask)
    sweep(tmp_path)
    assert unfinished.exists() is stays


def test_a_name_of_unfinished_folders_alone_is_shown_as_it_is() -> None:
    assert shown(".unfinished-12-0123abcd") == ".unfinished-12-0123abcd"


def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([i]) * 1000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_whole(path, content) for _ in range(20)], contents))
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.filterwarnings(  # of a file that an interrupt keeps from being closed at once
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("old", [{}, {"a": "old", "b": "old"}], ids=["nothing there", "old files"])
def test_an_interrupt_at_any_line_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, str]
) -> None:
    def work() -> None:
        with hold_folder(out), unfinished_folder(out) as new:
            for name in "ab":
                write_whole(new / name, name)
            move_whole([new / "a", new / "b"], out)
            with temporary_folder():
                pass

    def there() -> dict[str, str]:
        return {path.name: path.read_text() for path in out.iterdir()} if out.exists() else {}

    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("keyfilters.files.os.fsync", lambda _: None)  # it takes long
    files = ("keyfilters/interrupts.py", "keyfilters/files.py", "shutil.py", "contextlib.py")
    new = {"a": "a", "b": "b"}
    ends = []
    for name, text in old.items():
        write_whole(out / name, text)
    for _ in interrupted_at_every_line(work, files):
        with hold_folder(out):  # its lock was given back
            ends.append(there())
        assert ends[-1] in (old, new)
        assert not list(temporary.iterdir())
        shutil.rmtree(out, ignore_errors=True)
        for name, text in old.items():
            write_whole(out / name, text)
    assert old in ends and ends[-1] == new
