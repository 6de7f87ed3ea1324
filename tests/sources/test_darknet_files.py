"""Darknet: numbers without names, whose places follow from the sections of the ``.cfg``."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError

RNG = np.random.default_rng(8)
NEW, OLD = struct.pack("<3iq", 0, 2, 5, 64), struct.pack("<4i", 0, 1, 0, 64)


def numbers(count: int) -> bytes:
    return RNG.normal(size=count).astype("<f4").tobytes()


def read(folder: Path, sections: str, weights: bytes, channels: int = 4) -> kf.FilterBank:
    text = f"# made by hand\n[net]\nchannels={channels} ; of the input\n{sections}"
    (folder / "net.cfg").write_text(text)
    (folder / "net.weights").write_bytes(weights)
    return kf.read(folder / "net.weights")


def depthwise(channels: int) -> str:
    return f"[convolutional]\nfilters={channels}\ngroups={channels}\nsize=3\nstride=1\n"


@pytest.mark.parametrize("header", [NEW, OLD], ids=["64 bits", "32 bits"])
@pytest.mark.parametrize(
    ("sections", "passed", "channels"),
    [
        ("[batchnorm]\n", 3 * 4, 4),  # scales, means and variances
        ("[reorg]\nstride=2\n", 0, 16),
        ("[maxpool]\nsize=2\n[avg]\n[lrn]\n[Gaussian_yolo]\n[silence]\n[soft]\n", 0, 4),
        ("[conv]\nfilters=6\nsize=1\n", 6 + 6 * 4, 6),
        ("[convolutional]\nfilters=6\nsize=1\nbatch_normalize=1\n", 6 * 4 + 6 * 4, 6),
        ("[dropout]\n[route]\nlayers = -1, 0\n", 0, 8),
        ("[dropout]\n[route]\nlayers=0\ngroups=2\ngroup_id=1\n", 0, 2),
    ],
    ids=["batchnorm", "reorg", "none", "short", "convolution", "route", "part of a route"],
)
def test_filters_lie_behind_the_numbers_of_any_other_layer(
    tmp_path: Path, header: bytes, sections: str, passed: int, channels: int
) -> None:
    filters = RNG.normal(size=(channels, 3, 3)).astype("<f4")
    content = header + numbers(passed) + numbers(channels) + filters.tobytes()
    [layer] = read(tmp_path, sections + depthwise(channels), content).layers
    np.testing.assert_array_equal(layer.weight, filters)
    assert layer.groups == channels


def test_geometry(tmp_path: Path) -> None:
    told = "padding=2\nstride_y=2\nstride_x=3\ndilation=4\n"
    content = NEW + numbers(4 + 36)
    [layer] = read(tmp_path, depthwise(4) + told, content).layers
    assert (layer.padding, layer.stride, layer.dilation) == ((2, 2), (2, 3), (4, 4))
    [layer] = read(tmp_path, depthwise(4) + "pad=1\npadding=2\n", content).layers
    assert layer.padding == (1, 1)


@pytest.mark.parametrize("kind", ["deconvolutional", "deconv"])
def test_transposed_convolutions_are_named(tmp_path: Path, kind: str) -> None:
    sections = f"[{kind}]\nfilters=4\nsize=3\n" + depthwise(4)
    bank = read(tmp_path, sections, NEW + numbers(4 + 144 + 4 + 36))
    [(name, why)] = bank.skipped
    assert f"{kind}_0" in name and "transposed" in why


@pytest.mark.parametrize(
    ("sections", "weights", "word"),
    [
        (depthwise(4), NEW + numbers(39), "cut short"),
        (depthwise(4), OLD[:12], "cut short"),
        (depthwise(4), NEW + numbers(41), "numbers"),
        (depthwise(3), NEW + numbers(40), "groups"),
        (depthwise(0), NEW + numbers(40), "groups"),
        ("[route]\nlayers=1\n", NEW + numbers(1), "leads"),
        ("[route]\nlayers=-2\n", NEW + numbers(1), "leads"),
        ("[reorg]\nstride=65536\n", NEW + numbers(1), "channels"),
        ("[reorg]\nstride=0\n", NEW + numbers(1), "channels"),
        ("[lstm]\noutput=4\n", NEW + numbers(1), "lstm"),
    ],
    ids=[
        *("short", "head", "long", "groups", "none", "ahead", "before", "many", "no channel"),
        "unknown",
    ],
)
def test_damaged_files(tmp_path: Path, sections: str, weights: bytes, word: str) -> None:
    with pytest.raises(SourceError, match=word):
        read(tmp_path, sections, weights)


def test_lists_of_layers_begin_with_the_network(tmp_path: Path) -> None:
    (tmp_path / "net.cfg").write_text(depthwise(4))
    (tmp_path / "net.weights").write_bytes(NEW + numbers(40))
    with pytest.raises(SourceError, match="net"):
        kf.read(tmp_path / "net.weights")
