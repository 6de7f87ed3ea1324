"""Commands stopped at named points: what is left, and that the same command then ends well.

``make test-killed`` stops every verb at random moments.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.files import hold_folder, sweep, unfinished_in, write_whole
from keyfilters.tensor_files import save_tensors
from tests.cli.test_cli import run


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, as at a terminal; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).normal(size=(40, 5, 5)).astype(np.float32)
    kf.FilterBank([Layer("net", "conv", weight, None, None, 0.0)]).save(tmp_path / "b.safetensors")
    return tmp_path / "b.safetensors"


def sent(number: signal.Signals) -> Callable[..., None]:
    """Return a function that sends a signal to its own process, once."""
    times: list[int] = []

    def send(*_: Any, **__: Any) -> None:
        if not times:
            times.append(1)
            signal.raise_signal(number)

    return send


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("point", ["keyfilters.bank.save_tensors", "pandas.DataFrame.to_csv"])
def test_a_stopped_command_leaves_nothing_and_runs_again(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    saved: Path,
    tmp_path: Path,
    number: signal.Signals,
    point: str,
) -> None:
    out = tmp_path / "deep" / "out"
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(point, sent(number))
        assert run(capsys, "read", str(saved), "--out", str(out))[0] == 128 + number
    assert not out.parent.exists() and signal.getsignal(number) is before
    assert run(capsys, "read", str(saved), "--out", str(out))[0] == 0
    assert {x.name for x in out.iterdir()} == {"bank.safetensors", "layers.csv", "skipped.csv"}


class Finalised:
    """Sends a signal to its own process from its finaliser, where Python loses exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_finaliser_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path
) -> None:
    def lose(*_: Any, **__: Any) -> None:
        held = Finalised()
        del held
        while True:  # until it comes again
            pass

    monkeypatch.setattr("keyfilters.bank.save_tensors", lose)
    code, _, error = run(capsys, "read", str(saved), "--out", str(tmp_path / "out"))
    assert code == 128 + signal.SIGTERM and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_signal_that_a_library_turns_into_its_own_error_ends_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path
) -> None:
    def turn(*_: Any, **__: Any) -> None:  # as C code of matplotlib does with a failed callback
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise ValueError("Invalid affine transformation matrix") from None

    monkeypatch.setattr("pandas.DataFrame.to_csv", turn)
    code, _, error = run(capsys, "read", str(saved), "--out", str(tmp_path / "out"))
    assert code == 128 + signal.SIGTERM and "affine" not in error
    assert not (tmp_path / "out").exists()


HOLD = """
import sys
from pathlib import Path
from keyfilters.files import hold_folder, unfinished_folder
with hold_folder(Path(sys.argv[1])), unfinished_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("part")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_one_command_at_a_time_has_a_folder_and_what_a_killed_one_left_is_removed(
    capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        part = Path(other.stdout.readline().decode().strip())
        code, _, error = run(capsys, "read", str(saved), "--out", str(out))
        assert code == 2 and "another command" in error
        other.kill()
        other.wait()
        assert (part / "part").exists()
        assert run(capsys, "read", str(saved), "--out", str(out))[0] == 0
        assert not part.exists()
        other.stdin.close()


def test_what_lives_or_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    own, others = unfinished_in(tmp_path), tmp_path / ".unfinished-drops"
    stale = tmp_path / f".unfinished-{2**22 + 1}-01234567"  # above the highest number on Linux
    for path in (own, others, stale):
        path.write_text("x")
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {own, others}


def test_folders_made_in_vain_are_removed(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path / "a" / "b"):
        write_whole(tmp_path / "a" / "b" / "file", "x")
    assert (tmp_path / "a" / "b" / "file").read_text() == "x"


def test_a_read_only_folder_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("keyfilters.read", lambda *_, **__: pytest.fail("work has begun"))
    code, _, error = run(capsys, "read", str(saved), "--out", str(tmp_path / "out"))
    assert code == 2 and "read-only" in error and not (tmp_path / "out").exists()


def test_an_interrupt_while_writing_leaves_the_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "x", "old")
    monkeypatch.setattr("keyfilters.files.os.fsync", sent(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyFiltersError, match="too long"):
        write_whole(tmp_path / ("x" * 300), "new")
    write_whole(tmp_path / ("x" * 255), "new")


def test_saved_tensors_repeat_byte_for_byte(tmp_path: Path) -> None:
    tensors, metadata = {"x": np.arange(3)}, {name: name for name in "hgfedcba"}
    save_tensors(tmp_path / "a", tensors, metadata)
    save_tensors(tmp_path / "b", tensors, dict(sorted(metadata.items())))
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    places = [content.index(f'"{x}":'.encode()) for x in "abcdefgh"]
    assert places == sorted(places)
