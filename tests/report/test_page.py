from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.report.payload import build_payload


class Checker(HTMLParser):
    """Collects what a browser would fetch, and the nesting of tags."""

    VOID = ("meta", "br", "link", "img", "input", "use", "path")

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_one_file_with_escaped_names(planted_atlas: kf.Atlas, tmp_path: Path) -> None:
    path = kf.write_report(planted_atlas, tmp_path / "new" / "report.html")
    html = path.read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.fetched == []
    assert checker.scripts == 2, "a layer's name became a script"
    assert "b&lt;script&gt;" in html and "two &amp; co" in html
    assert "url(http" not in html and "@import" not in html


def test_page_says_what_was_read_skipped_and_unusable(
    planted_atlas: kf.Atlas, tmp_path: Path
) -> None:
    html = kf.write_report(planted_atlas, tmp_path / "report.html").read_text()
    for words in (
        "1 × dense 3×3 convolution of 3 channels",
        "by shape only",
        "non-finite",
        "10 usable filters, fewer than 64",
        "strictest, held out",
        "Adjusted Rand index",
        "Every filter explained by an idealised receptive field",
        planted_atlas.words_[(5, 5)]["coverage"].split(".")[-2],
    ):
        assert words in html, words


def test_payload_holds_every_filter(planted_atlas: kf.Atlas) -> None:
    payload = json.loads(json.dumps(build_payload(planted_atlas)))
    assert payload["shown"] == payload["total"] == len(planted_atlas.bank_)
    layer = payload["layers"][0]
    drawn = np.frombuffer(base64.b64decode(layer["w"]), np.int8).reshape(-1, 25)
    stored = planted_atlas.bank_.layers[0].weight.reshape(-1, 25)
    centred = stored - stored.mean(1, keepdims=True)
    expected = 127 * centred / np.abs(centred).max(1, keepdims=True)
    assert np.abs(drawn - expected).max() <= 0.51
    [size] = payload["sizes"]
    shares = sum(pattern["share"] for pattern in size["patterns"])
    assert abs(shares - planted_atlas.coverage_.iloc[0]["coverage"]) < 1e-3
    assert sum(size["stripUsage"]) == len(planted_atlas.sizes_[(5, 5)].rows)


def test_thinned_page_stays_small(planted_atlas: kf.Atlas) -> None:
    payload = build_payload(planted_atlas, budget=5000)
    assert payload["shown"] < payload["total"]
    members = [i for p in payload["sizes"][0]["patterns"] for i in p["members"]]
    assert max(members) < payload["shown"]


def test_thirty_thousand_filters_fit_in_five_megabytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    layers = [
        Layer("net", f"l{i}", generator.normal(size=(3000, 7, 7)).astype(np.float32), None, None, 0)
        for i in range(10)
    ]
    atlas = kf.Atlas(seeds=1, sample=500, counts=(1, 4)).fit(kf.FilterBank(layers))
    path = kf.write_report(atlas, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    assert re.search(r"evenly spaced within each layer", path.read_text())
