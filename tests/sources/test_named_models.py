"""Models by the names of Keras and of transformers, of which stand-ins are enough."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.errors import SourceError
from tests.sources.tiny_models import FILTERS, HWCM, HWIO, STATE, Net


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **held: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(held)
    monkeypatch.setitem(sys.modules, name, module)


# ------------------------------------------------------------------ Keras


class Layer:
    """A layer or a model of Keras: its configuration, its weights, the layers inside it."""

    def __init__(self, kind: str, name: str, *inside: Layer, **weights: Any) -> None:
        self.kind, self.name = kind, name
        self.weights = [SimpleNamespace(name=key, value=value) for key, value in weights.items()]
        if inside:
            self.layers = list(inside)

    def get_layer(self, name: str) -> Layer:
        return next(x for x in self.layers if x.name == name)

    def get_config(self) -> dict[str, Any]:
        inside = getattr(self, "layers", [])
        layers = [{"class_name": x.kind, "config": x.get_config()} for x in inside]
        config = {"name": self.name, "strides": [2, 2], "padding": "same"}
        return config | ({"layers": layers} if inside else {})


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Put a Keras of two models in place; returns what is asked of it."""
    asked: list[tuple[str, object]] = []

    def small_net(weights: str | None = "imagenet") -> Layer:
        asked.append(("weights", weights))
        inner = Layer("Functional", "inner", Layer("DepthwiseConv2D", "dw", kernel=HWCM))
        return Layer(
            "Functional", "net", Layer("Conv2D", "pw", kernel=HWIO, bias=HWIO[0, 0]), inner
        )

    def broken_net(weights: str | None = "imagenet") -> Layer:
        raise RuntimeError("\nno answer\nfrom nobody")

    stand_in(
        monkeypatch,
        "keras",
        applications=SimpleNamespace(SmallNet=small_net, BrokenNet=broken_net, small_net=None, A=1),
        utils=SimpleNamespace(set_random_seed=lambda seed: asked.append(("seed", seed))),
        ops=SimpleNamespace(convert_to_numpy=lambda variable: variable.value),
    )
    return asked


@pytest.mark.parametrize(
    ("spec", "weights", "model"),
    [
        ("keras:SmallNet", "imagenet", "SmallNet"),
        ("keras:smallnet?pretrained=false", None, "smallnet (untrained, seed 3)"),
    ],
)
def test_models_of_keras(
    keras: list[tuple[str, object]], spec: str, weights: str | None, model: str
) -> None:
    bank = kf.read(spec, seed=3)
    assert keras == [("seed", 3), ("weights", weights)] and bank.models == [model]
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert (layer.name, layer.stride, layer.padding) == ("dw", (2, 2), "same")
    [(name, why)] = bank.skipped
    assert name == f"{model}/pw" and "pointwise" in why


@pytest.mark.usefixtures("keras")
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("keras:SmalNet", "SmallNet"),
        ("keras:A", "no model"),
        ("keras:BrokenNet", r"no answer.*pretrained=false"),
        ("keras:SmallNet?pretrained=maybe", "maybe"),
    ],
)
def test_names_of_keras_that_miss(spec: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as error:
        kf.read(spec)
    assert "nobody" not in str(error.value)


# ------------------------------------------------------------------ transformers


class Named(nn.Module):
    """Puts a network behind a name, as a model of transformers does; its state dict differs."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()


def folder_of(folder: Path, config: str) -> Path:
    torch.save(STATE, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(config)
    return folder


CONFIG = json.dumps({"model_type": "small"})


@pytest.mark.parametrize("works", [True, False])
def test_folders_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Where no model can be made of the configuration, the names in the file tell."""
    asked: list[dict[str, object]] = []

    def make(folder: Path, **options: object) -> Any:
        asked.append(options)
        if not works:
            raise ValueError("an unknown model type")
        return Named()

    auto = SimpleNamespace(from_pretrained=make)
    stand_in(monkeypatch, "transformers", AutoConfig=auto, AutoModel=auto)
    bank = kf.read(folder_of(tmp_path, CONFIG))
    [layer] = bank.layers
    np.testing.assert_array_equal(layer.weight, FILTERS)
    assert layer.name == ("backbone.dw" if works else "dw")
    assert layer.stride == ((2, 2) if works else None)
    assert asked and all(x["trust_remote_code"] is False for x in asked)


@pytest.mark.parametrize(
    "config", ["{", "[1]", "{}", '{"architecture": "x", "model_type": "y"}', CONFIG]
)
def test_folders_that_are_none_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    """By their configuration, or, the last, since it is not installed."""
    if config == CONFIG:
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        stand_in(monkeypatch, "transformers")
    [layer] = kf.read(folder_of(tmp_path, config)).layers
    assert layer.name == "dw" and layer.stride is None
    np.testing.assert_array_equal(layer.weight, FILTERS)
