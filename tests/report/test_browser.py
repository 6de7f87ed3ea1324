"""The pages' script in a real browser, where one is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

import keyfilters as kf
from keyfilters.report.check_page import write_check_report
from keyfilters.report.compare_page import write_comparison_report
from keyfilters.report.experiment_page import write_experiment
from tests.inspection.sick import healthy, one_nan, spoiled
from tests.report.browser import Browser, browser
from tests.report.test_experiment_page import example

FOUND = "document.querySelector('#found').textContent"
LAYERS = "[...document.querySelectorAll('.layer h4 a')].map((a) => a.textContent)"


@pytest.fixture(scope="module")
def page(planted_atlas: kf.Atlas, tmp_path_factory: pytest.TempPathFactory) -> str:
    return kf.write_report(planted_atlas, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def test_script_draws_patterns_strip_and_layers(
    planted_atlas: kf.Atlas, page: str, tab: Browser
) -> None:
    tab.open(page)
    count = "document.querySelectorAll({!r}).length".format
    [size] = planted_atlas.sizes_.values()
    assert size.matched is not None
    patterns = (size.patterns.table["share"] >= 0.005).sum()
    kinds = 2 * len(size.matched.shares)  # best and worst
    keys = sum(len(use.keys) for use in size.keys.values())
    assert tab.value(count(".card")) == patterns + kinds + keys
    assert tab.value(LAYERS) == [layer.name for layer in planted_atlas.bank_.layers]
    assert tab.value(count('[aria-label="decoded filters along the one-dimensional code"]')) == 1
    assert tab.value(count("canvas")) >= 3 * patterns + kinds  # prototype, form and members
    assert tab.problems == []


def test_search_leaves_what_fits_and_the_address_keeps_it(page: str, tab: Browser) -> None:
    tab.open(page)
    tab.type("input[type=search]", "broken 4")
    tab.wait(f"{FOUND}.startsWith('1 filter ')")
    assert tab.value(LAYERS) == ["broken"]
    address = tab.value("location.href")
    assert address.startswith(page + "#search=broken")
    tab.open(address)
    assert tab.value(LAYERS) == ["broken"]
    assert tab.value("document.querySelector('input[type=search]').value") == "broken 4"
    tab.value("[...document.querySelectorAll('#found a')].at(-1).click()")
    assert tab.value(LAYERS + ".length") == 5


def test_links_choose_a_pattern_a_key_and_a_layer(
    planted_atlas: kf.Atlas, page: str, tab: Browser
) -> None:
    [size] = planted_atlas.sizes_.values()
    row = size.patterns.table.iloc[0]
    tab.open(f"{page}#size={quote('5×5')}&pattern={quote(row['pattern'])}")
    classified = planted_atlas.table_["classified"] & (
        planted_atlas.table_["pattern"] == row["pattern"]
    )
    assert tab.value(FOUND).startswith(f"{classified.sum()} filter")
    key = size.keys["published"].keys.names[0]
    served = (planted_atlas.table_["published_key"] == key).sum()
    tab.open(f"{page}#key={quote('published: ' + key)}")
    assert tab.value(FOUND).startswith(f"{served} filter")
    # A layer whose name is a script is a name.
    name = "b<script>alert(1)</script>"
    tab.open(page)
    tab.value("[...document.querySelectorAll('.layer h4 a')][1].click()")
    tab.wait(f"{FOUND}.startsWith('200 filters in 1 layer.')")
    assert tab.value(LAYERS) == [name]
    assert tab.value("document.querySelectorAll('script').length") == 2
    # What does not exist is not chosen.
    tab.open(f"{page}#layer=none&kind=none&pattern=none")
    assert tab.value(LAYERS + ".length") == 5
    assert tab.problems == []


def test_pointing_at_a_filter_tells_its_pattern_and_keys(
    planted_atlas: kf.Atlas, page: str, tab: Browser
) -> None:
    tab.open(page + "#layer=a&search=channel:7")
    tab.wait("document.querySelector('.layer canvas') !== null")
    tab.point(".layer canvas", 12, 12)
    tab.wait("document.querySelector('#tip').style.display === 'flex'")
    told = tab.value("document.querySelector('#tip').innerText")
    row = planted_atlas.table_.iloc[7]
    assert row["layer"] == "a" and "channel 7" in told and row["pattern"] in told
    for name in ("published", "consensus"):
        assert f"{name} key: {row[f'{name}_key']} (r² {row[f'{name}_r2']:.2f})" in told
    tab.point("h1", 2, 2)
    tab.wait("document.querySelector('#tip').style.display === 'none'")


def looks_right(tab: Browser, *, dark: bool) -> None:
    """Check that nothing scrolls sideways, that text reads on its ground, and charts have size."""
    assert tab.value("document.documentElement.scrollWidth") <= tab.value("innerWidth")
    ink, paper = tab.value(f"((s) => [s.color, s.backgroundColor])({STYLE}(document.body)){SUMS}")
    assert (ink > paper) == dark
    texts = "[...document.querySelectorAll('figure svg text')]"
    fills = tab.value(f"{texts}.map((t) => {STYLE}(t).fill){SUMS}")
    assert fills and all(abs(value - paper) > 150 for value in fills)
    sizes = tab.value(
        f"{texts}.map((t) => parseFloat({STYLE}(t).fontSize) *"
        " t.ownerSVGElement.clientWidth / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) > 7.5


STYLE = "getComputedStyle"
SUMS = ".map((c) => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b))"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_readable_on_a_phone(page: str, tab: Browser, tmp_path: Path, dark: bool) -> None:
    write_experiment(example(), tmp_path / "experiment.html")
    other = replace(healthy(1).layers[0], weight=healthy(2).layers[1].weight)
    write_comparison_report(
        kf.compare(healthy(1), kf.FilterBank([other])), tmp_path / "compare.html"
    )
    others = [(tmp_path / f"{name}.html").as_uri() for name in ("experiment", "compare")]
    for address in (page, *others):
        tab.open(address, 390, dark=dark)
        looks_right(tab, dark=dark)
    checked = kf.check(spoiled(healthy(), one_nan))
    tab.open(write_check_report(checked, tmp_path / "check.html").as_uri(), 390, dark=dark)
    assert tab.value("document.documentElement.scrollWidth") <= tab.value("innerWidth")
    assert tab.value("document.querySelectorAll('.finding.error img').length") == 1
    assert tab.problems == []


def test_print_is_light_and_has_no_controls(page: str, tab: Browser) -> None:
    tab.open(page, dark=True)
    tab.send("Emulation.setEmulatedMedia", media="print",
             features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    looks_right(tab, dark=False)
    shown = tab.value(
        f"['#controls', 'nav'].map((x) => {STYLE}(document.querySelector(x)).display)"
    )
    assert shown == ["none", "none"]


def test_the_policy_refuses_other_scripts_and_the_network(page: str, tab: Browser) -> None:
    tab.open(page)
    before = len(tab.problems)
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'),"
        " { textContent: 'window.ran = true' }))"
    )
    assert tab.value("window.ran") is None
    assert tab.value("fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')") == (
        "refused"
    )
    told = " ".join(tab.problems[before:])
    assert "Content Security Policy" in told and "connect-src" in told
    del tab.problems[before:]
