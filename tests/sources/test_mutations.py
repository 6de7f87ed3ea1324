"""Damaged files of every format: an error of ours or filters, and nothing else.

By default fifty damaged files a format; ``pytest -m long`` makes twenty thousand.
"""

from __future__ import annotations

import faulthandler
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from tests.sources.tiny_models import NEEDS, TINY

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]
WORDS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\xff" * 8, b"../")
SLOWEST = 600  # seconds for one file: a hang, whatever else the machine does


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file, or overwrite, insert or remove bytes at a few places."""
    data = bytearray(content)
    if rng.random() < 0.15:
        return bytes(data[: rng.integers(len(data))])
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data)))
        word = WORDS[rng.integers(len(WORDS))]
        way = rng.integers(5)
        if way == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[at : at + len(word)] = word
        elif way == 2:
            data[at:at] = word
        elif way == 3:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            data[at] = int(rng.integers(256))
        if not data:
            break
    return bytes(data)


def try_damaged(make: Callable[[Path], Path], folder: Path, count: int, seed: int) -> None:
    """Read damaged copies of a model's files, one file damaged at a time."""
    rng = np.random.default_rng(seed)
    path = make(folder)
    files = sorted(x for x in folder.rglob("*") if x.is_file())
    whole = {x: x.read_bytes() for x in files}
    beside = set(folder.rglob("*"))
    for _ in range(count):
        victim = files[rng.integers(len(files))]
        content = damaged(whole[victim], rng)
        victim.write_bytes(content)
        faulthandler.dump_traceback_later(SLOWEST, exit=True)  # of a hang the test never returns
        try:
            kf.read(path)
        except KeyFiltersError as error:
            assert "\n" not in str(error)
        finally:
            faulthandler.cancel_dump_traceback_later()
        victim.write_bytes(whole[victim])
    assert set(folder.rglob("*")) == beside


def check(name: str, folder: Path, count: int) -> None:
    for library in NEEDS.get(name, []):
        pytest.importorskip(library)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try_damaged(TINY[name], folder, count, seed=len(name))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2 * 2**20  # kilobytes: 2 GB


@pytest.mark.parametrize("name", TINY)
def test_damaged_files_are_refused_or_read(tmp_path: Path, name: str) -> None:
    check(name, tmp_path, 50)


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_twenty_thousand_damaged_files(tmp_path: Path, name: str) -> None:
    check(name, tmp_path, 20_000)
