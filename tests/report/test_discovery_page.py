from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.discovery import Discovery
from keyfilters.nulls import NULLS
from keyfilters.report.discovery_figure import discovery_figure
from keyfilters.report.discovery_page import write_discovery_report
from tests.discovery.test_discover import planted
from tests.report.test_page import Checker


@pytest.fixture(scope="module")
def found() -> dict[str, Discovery]:
    made = {}
    for size in (3, 5):
        _, bank = planted(size, 0, n=300)
        made[f"{size}×{size}"] = kf.discover_keys(bank, kinds=["lines"], count=12, keys=4)
    return made


def test_page_is_one_file_and_shows_every_key(found: dict[str, Discovery], tmp_path: Path) -> None:
    path = write_discovery_report(found, tmp_path / "new" / "report.html", command="type <this>")
    html = path.read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.scripts == 0
    assert all(address.startswith("data:image/png;base64,") for address in checker.fetched)
    assert html.count('class="card"') == 8 and "type &lt;this&gt;" in html
    assert html.count('<figure class="kept"') == 2 * 2 * 4  # sizes, rounds, keys
    assert html.count("its idealised receptive field") == 8


def test_figures_on_the_page_are_those_of_the_discovery(
    found: dict[str, Discovery], tmp_path: Path
) -> None:
    html = write_discovery_report(found, tmp_path / "report.html").read_text()
    for name, one in found.items():
        assert f"<strong>{one.value:.0%}</strong>; in {NULLS[one.strictest]}" in html
        assert f"{name}: 4 keys for {len(one.served):,} filters" in html
        assert f"{(one.served['r2'] >= 0.64).mean():.0%} of the filters have a key" in html
        assert one.words.split("variance; ")[1] in html
    # The first image of a section is the key that serves most filters: blue negative, red positive.
    one = found["3×3"]
    key = one.keys.filters[int(one.models["share"].argmax())]
    data = re.findall(r'base64,([^"]+)" alt="key ', html)[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert pixels.shape == (3, 3, 3)
    clear = np.abs(key) > 0.1 * np.abs(key).max()
    assert ((pixels[..., 0] > pixels[..., 2]) == (key > 0))[clear].all()


def test_keys_without_models_or_nulls_have_a_page_and_a_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [
        Layer(f"net {i}", "conv", rng.normal(size=(60, 2, 2)).astype(np.float32), None, None, 0.0)
        for i in range(3)
    ]
    options = {"keys": 2, "count": 6, "rounds": 1, "kinds": ["lines"]}
    one = kf.discover_keys(kf.FilterBank(layers), nulls=(), **options)
    figure = discovery_figure({"2×2": one})
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["candidates", "keys, exchanged"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title().endswith("%")]
    assert len(titles) == 2
    shares = sorted(one.models["share"], reverse=True)
    assert titles == [f"{100 * share:.0f} %" for share in shares]
    path = tmp_path / "page.html"
    html = write_discovery_report(
        {"2×2": kf.discover_keys(kf.FilterBank(layers), **options)}, path
    ).read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and html.count('class="card"') == 2
    assert "its idealised receptive field" not in html
    assert html.count("relative depth of the layer") == 3, "one chart a model"
