"""Real models of others, where they lie beside the checkout: exact counts, and one network in many
formats. `tests.sources.test_formats` does the same with a small network of our own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.sources.formats import recognise

MODELS = Path(__file__).parents[3] / "shared" / "models"
COUNTS: dict[str, dict[str, int]] = (
    json.loads((MODELS / "manifest.json").read_text()) if MODELS.is_dir() else {}
)


def model(name: str) -> Path:
    if not (MODELS / name).exists():
        pytest.skip("no models beside this checkout")
    kind = recognise(MODELS / name)
    if kind is not None and kind.package:
        pytest.importorskip(kind.package)
    return MODELS / name


@pytest.mark.parametrize("name", COUNTS or ["none"])
def test_counts_are_exact(name: str) -> None:
    bank = kf.read(model(name))
    sizes = {f"{y}x{x}": n for (y, x), n in bank.sizes.items() if (y, x) != (1, 1)}
    assert sizes == COUNTS[name]
    assert len(bank.models) == 1


def filters(name: str) -> kf.FilterBank:
    return kf.read(model(name))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("rfb320/rfb320.pth", "rfb320/rfb320.onnx"),
        ("rfb320/RFB-320.caffemodel", "rfb320/RFB-320.param"),
        ("rfb320/RFB-320.caffemodel", "rfb320/RFB-320.mnn"),
        ("pose-cpm/model.pb", "pose-cpm/model.tflite"),
        ("pose-cpm/model.pb", "pose-cpm/model.mlmodel"),
    ],
)
def test_one_network_in_two_formats_is_the_same_to_the_bit(one: str, two: str) -> None:
    a, b = filters(one), filters(two)
    assert a.sizes == b.sizes
    for size in a.sizes:
        x, y = (sorted(w.tobytes() for w in bank.stack(size)[0]) for bank in (a, b))
        assert x == y


@pytest.mark.parametrize(
    ("stored", "reference", "step"),
    [
        ("fastestdet/FastestDet.param", "fastestdet/FastestDet.onnx", 2**-10),
        ("fastestdet/fd_fp16.onnx", "fastestdet/FastestDet.onnx", 2**-10),
        ("fastestdet/fd_qdq.onnx", "fastestdet/FastestDet.onnx", 1 / 250),
        ("fastestdet/fd_qop.onnx", "fastestdet/FastestDet.onnx", 1 / 250),
        ("audio/str_ww_ref_model.tflite", "audio/str_ww_ref_model.h5", 1 / 250),
    ],
)
def test_rounded_formats_differ_by_their_step(stored: str, reference: str, step: float) -> None:
    """Each filter is that of the float network, to a step of the largest weight of its layer."""
    a, b = filters(stored), filters(reference)
    assert a.sizes == b.sizes
    layers = list(zip(a.layers, b.layers, strict=True))
    if stored.endswith(("qdq.onnx", "qop.onnx")):  # parallel branches in another order
        named = {y.name: y for y in b.layers}
        layers = [(x, named[x.name.removesuffix("_quant")]) for x in a.layers]
    for x, y in layers:
        assert np.abs(x.weight - y.weight).max() <= step * np.abs(y.weight).max()


def test_a_folder_of_one_network_counts_it_once() -> None:
    model("rfb320/rfb320.pth")
    bank = kf.read(MODELS / "rfb320")
    assert not [why for _, why in bank.skipped if "unreadable" in why]
    assert any("the same model as" in why for _, why in bank.skipped)
