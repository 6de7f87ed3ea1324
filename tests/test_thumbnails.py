from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.thumbnails import contact_sheet, filter_image
from tests.inspection.sick import healthy, spoiled, untrained


def pixels(uri: str) -> np.ndarray:  # type: ignore[type-arg]
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.array(Image.open(io.BytesIO(data))).astype(int)


def test_a_filter_as_a_picture() -> None:
    shown = pixels(filter_image(np.array([[1.0, -1.0, 0.0], [np.nan, 0.5, -0.5]])))
    assert shown.shape == (2, 3, 3)
    red, blue = shown[..., 0], shown[..., 2]
    assert red[0, 0] > blue[0, 0] and blue[0, 1] > red[0, 1]
    assert shown[0, 2].min() > 240 and len(set(shown[1, 0])) == 1
    # On a scale of its own a filter shows the same whatever its norm.
    taps = np.random.default_rng(0).normal(size=(5, 5))
    assert filter_image(taps) == filter_image(8 * taps) != filter_image(taps, limit=9.0)


def test_notebooks_show_pictures_and_escape_names() -> None:
    weight = np.ones((3, 5, 5), np.float32)
    bank = healthy(2) + kf.FilterBank([Layer("net", "<script>", weight, None, None, 0.0)])
    html = bank._repr_html_()
    assert html.count("<img") == 43 and "<script>" not in html and "&lt;script&gt;" in html
    keys = kf.KeySet.consensus(5)
    assert keys._repr_html_().count("<img") == len(keys)
    assert contact_sheet([]).count("<img") == 0
    changed = kf.compare(healthy(1), spoiled(healthy(1), untrained, slice(None)))
    assert changed._repr_html_().count("<img") == 24


def test_discovery_and_atlas_in_a_notebook(planted_atlas: kf.Atlas) -> None:
    found = kf.discover_keys(healthy(2), size=5, keys=4, count=8, rounds=1, kinds=["lines"])
    html = found._repr_html_()
    assert (
        html.count("<img") == 4 and "null" in html and re.match("Discovery\\(4 keys", repr(found))
    )
    prototypes = sum(len(x.patterns.table) for x in planted_atlas.sizes_.values())
    assert planted_atlas._repr_html_().count("<img") == prototypes
    assert "patterns" in repr(planted_atlas) and "seed=3" in repr(kf.Atlas(seed=3))


def test_a_long_bank_shows_its_first_and_its_last_layer() -> None:
    bank = healthy(16)
    html = bank._repr_html_()
    assert "12 of 16" in html and html.count("<tr>") == 13
    assert ">conv0<" in html and ">conv15<" in html


def test_shipped_patterns_and_a_comparison_in_one_line() -> None:
    book = kf.load_atlas("zoo-5x5")
    assert book._repr_html_().count("<img") == 16 and len(repr(book)) < 120
    found = kf.compare(healthy(1), spoiled(healthy(1), untrained, slice(None)))
    assert "\n" not in repr(found) and len(repr(found)) < 120 and "null" in repr(found)
