from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.errors import KeyFiltersError, NoFiltersError, SourceError
from keyfilters.experiments.executors import Executor, LocalProcesses
from keyfilters.experiments.ray_cluster import RayCluster
from keyfilters.experiments.reading import _contents, read_sources
from tests.experiments.in_process import InProcess


def equal(one: kf.FilterBank, other: kf.FilterBank) -> None:
    assert one.skipped == other.skipped and len(one.layers) == len(other.layers)
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        np.testing.assert_array_equal(ours.weight, theirs.weight, strict=True)
        for name in ("model", "name", "stride", "dilation", "depth", "multiplier", "note"):
            assert getattr(ours, name) == getattr(theirs, name)


@pytest.fixture
def sources(tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A relative path, a name, a model without depthwise filters, and one of them twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), "models/net.pth")
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), "dense.pth")
    return ["models", "timm:test_convnext?pretrained=false", "dense.pth", "models"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor", [LocalProcesses(2, 1), pytest.param(RayCluster(), marks=pytest.mark.long)]
)
def test_as_read_directly(sources: list[str], executor: Executor) -> None:
    told: list[str] = []
    found = read_sources(sources, "out", seed=3, executor=executor, progress=told.append)
    equal(found, kf.read(*sources, seed=3))
    assert "3 of 3" in told[0]
    equal(read_sources(sources, "out", seed=3, executor=executor, progress=told.append), found)
    assert "0 of 3" in told[4]


@pytest.mark.slow
def test_what_cannot_be_read_is_told(sources: list[str]) -> None:
    bad = "timm:convnext_tiy?pretrained=false"
    with pytest.raises(
        SourceError, match=r"1 of 2 sources cannot be read: timm:convnext_tiy.*near"
    ):
        read_sources([sources[0], bad], "out", executor=InProcess())
    assert len(read_sources(sources[:1], "out", executor=InProcess())) == len(kf.read(sources[0]))
    with pytest.raises(KeyFiltersError, match=r"there is no file .*nothing.pth"):
        read_sources(["nothing.pth"], "nothing", executor=InProcess())
    with pytest.raises(NoFiltersError, match=r"no depthwise filters in dense.pth; seen instead: 1"):
        read_sources(["dense.pth"], "dense", executor=InProcess())
    with pytest.raises(SourceError, match="nothing to read"):
        read_sources([], "none")


@pytest.mark.parametrize("source", ["models", "models/net.pth", "models/*.pth", "models/net.pth#"])
def test_a_file_that_has_changed_is_read_again(sources: list[str], source: str) -> None:
    source += "state_dict" if source.endswith("#") else ""
    state = {"state_dict": torch.load("models/net.pth")}
    banks = []
    for scale in (1, 2):
        scaled = {name: scale * x for name, x in state["state_dict"].items()}
        torch.save({"state_dict": scaled}, "models/net.pth")
        os.utime("models/net.pth", (scale, scale))
        banks.append(read_sources([source], "out", executor=InProcess()))
    np.testing.assert_array_equal(banks[1].layers[0].weight, 2 * banks[0].layers[0].weight)


def test_the_other_parts_of_a_file_count(tmp_path: Path) -> None:
    found = []
    for text in ("x", "other"):
        (tmp_path / "net.param").write_text("graph")
        (tmp_path / "net.bin").write_text(text)
        found.append(_contents(str(tmp_path / "net.param")))
    assert found[0] != found[1]
    assert _contents("timm:test_convnext") == _contents("package:no-such-package") == {}
