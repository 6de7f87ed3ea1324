from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

import keyfilters as kf
from keyfilters.bank import Layer
from tests.inspection.sick import healthy, spoiled, untrained


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def image(ax: Any) -> np.ndarray[Any, Any]:
    return np.ma.filled(ax.images[0].get_array(), np.nan)


def pairs_of_taps() -> kf.FilterBank:
    """Filters of a window that has no receptive fields."""
    weight = np.random.default_rng(0).normal(size=(9, 1, 2)).astype(np.float32)
    return kf.FilterBank([Layer("net", "conv", weight, None, None, 0.0)])


def test_mosaic_holds_every_tap_on_its_scale() -> None:
    filters = np.random.default_rng(0).normal(size=(5, 3, 4)) * np.arange(1, 6)[:, None, None]
    canvas = image(kf.plot.mosaic(filters, columns=3))
    for i, taps in enumerate(filters):
        y, x = 4 * (i // 3), 5 * (i % 3)
        np.testing.assert_allclose(canvas[y : y + 3, x : x + 4], taps / np.abs(taps).max())
    assert np.isfinite(canvas).sum() == filters.size
    shared = image(kf.plot.mosaic(filters, columns=3, scale="shared"))
    np.testing.assert_allclose(shared[:3, :4], filters[0] / np.abs(filters).max())
    labelled = kf.plot.mosaic(filters, labels=list("abcde"))
    assert [text.get_text() for text in labelled.texts] == list("abcde")
    long = kf.plot.mosaic(filters, labels=["a name of many words\nand a line"] * 5)
    assert max(map(len, long.texts[0].get_text().splitlines())) <= 12
    zero = kf.plot.mosaic(np.zeros((2, 3, 3)))
    assert set(image(zero)[np.isfinite(image(zero))]) == {0}


@pytest.mark.parametrize(
    "call",
    [
        lambda: kf.plot.mosaic([]),
        lambda: kf.plot.mosaic([np.ones((3, 3)), np.ones((5, 5))]),
        lambda: kf.plot.mosaic(np.ones((2, 3, 3)), scale="mine"),
        lambda: kf.plot.filters(healthy(), "conv9"),
        lambda: kf.plot.idealised(healthy(), "conv9"),
        lambda: kf.plot.changed(kf.compare(healthy(1), healthy(1))),
        lambda: kf.plot.steps(kf.compare(healthy(1), healthy(1))),
        lambda: kf.plot.coverage(kf.compare(*[pairs_of_taps()] * 2)),
        lambda: kf.plot.flow(kf.compare(*[pairs_of_taps()] * 2)),
    ],
)
def test_what_cannot_be_drawn(call: Any) -> None:
    with pytest.raises(kf.KeyFiltersError):
        call()


def test_filters_of_a_layer_into_given_axes() -> None:
    bank = healthy()
    axes = Figure().subplots()
    assert kf.plot.filters(bank, "conv2", most=10, ax=axes) is axes
    assert np.isfinite(image(axes)).sum() == 10 * 25 and "conv2" in axes.get_title()
    assert not plt.get_fignums()  # pyplot was not asked


def test_learned_idealised_and_residual_add_up() -> None:
    ax = kf.plot.idealised(healthy(1), count=4)
    canvas = image(ax)
    height = len(canvas) // 3
    learned, fitted, left = (canvas[i * height : i * height + 5, :5] for i in range(3))
    np.testing.assert_allclose(learned, fitted + left, atol=1e-9)
    r2 = [t.get_text() for t in ax.texts if t.get_text()]
    assert len(r2) == 4 and all(text.startswith("r²") for text in r2)
    assert float(r2[0].split()[1]) == pytest.approx(
        (fitted**2).sum() / (learned**2).sum(), abs=0.01
    )


def test_keys_with_and_without_twins() -> None:
    keys = kf.KeySet.consensus(5)
    with_twins = kf.plot.keys(keys)
    assert np.isfinite(image(with_twins)).sum() == 2 * keys.filters.size
    assert np.isfinite(image(kf.plot.keys(keys, twins=False))).sum() == keys.filters.size


def test_comparison_flow_cosines_and_changed() -> None:
    bank = healthy(3)
    found = kf.compare(bank, spoiled(bank, untrained))
    bands = kf.plot.flow(found).collections
    assert len(bands) == (found.flow["share"] > 0).sum()
    models, null = kf.plot.cosines(found).lines
    np.testing.assert_allclose(models.get_ydata(), found.layers["cosine"])
    np.testing.assert_allclose(null.get_ydata(), found.layers["null"])
    assert np.isfinite(image(kf.plot.changed(found, count=6))).sum() == 2 * 6 * 25
    covered = kf.plot.coverage(found).lines
    for line, column in zip(covered, ("explained_a", "explained_b", "explained_null"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), found.layers[column])


def test_cosines_near_one_are_drawn_as_what_is_missing() -> None:
    bank = healthy(3)
    near = kf.compare(
        bank, spoiled(bank, lambda w, rng: w + np.float32(1e-4) * rng.normal(size=w.shape))
    )
    ax = kf.plot.cosines(near)
    assert "1 −" in ax.get_ylabel()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1 - near.layers["cosine"])


def test_steps_of_a_training() -> None:
    bank = healthy(2)
    half = spoiled(bank, lambda w, rng: (0.5 * w).astype(w.dtype))
    ax = kf.plot.steps(kf.compare(bank, half, spoiled(bank, untrained)))
    assert len(ax.lines) == 3 and len(ax.get_xticks()) == 3
    np.testing.assert_allclose(ax.lines[0].get_ydata()[0], 1)
    assert len(kf.plot.steps(kf.compare(*[pairs_of_taps()] * 3)).lines) == 1


def test_atlas_patterns_code_and_depth(planted_atlas: kf.Atlas) -> None:
    [size] = planted_atlas.sizes_
    ax = kf.plot.patterns(planted_atlas, most=4)
    assert len(ax.texts) == 4 and all("%" in text.get_text() for text in ax.texts)
    strip = kf.plot.code_strip(planted_atlas, size, count=7)
    assert np.isfinite(image(strip)).sum() == 7 * size[0] * size[1]
    bars = kf.plot.depth_profile(planted_atlas, size, model="one")
    table = planted_atlas.table_.iloc[planted_atlas.sizes_[size].rows]
    shares = table[table["model"] == "one"].groupby("layer")["classified"].mean()
    left = [bar.get_height() for bar in bars.containers[-1]]  # the unclassified, drawn last
    assert sorted(left) == pytest.approx(sorted(1 - shares), abs=1e-6)
    quiet = kf.plot.depth_profile(planted_atlas, size, legend=False)
    assert quiet.get_legend() is None is not bars.get_legend()
    with pytest.raises(kf.KeyFiltersError, match="5×5"):
        kf.plot.patterns(planted_atlas, 9)
    with pytest.raises(kf.KeyFiltersError, match="one"):
        kf.plot.depth_profile(planted_atlas, size, model="three")


def test_discovery_beside_its_nulls() -> None:
    found = kf.discover_keys(healthy(2), size=5, keys=4, count=8, rounds=1, kinds=["lines"])
    ax = kf.plot.discovery(found)
    assert len(ax.lines) == 2 + len(found.nulls)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), found.curve["value"])
