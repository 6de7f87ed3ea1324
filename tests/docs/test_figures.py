"""The figures that README and the result pages quote are those that were recorded."""

import json
import re
import sys
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "docs" / "_ext"
UNLIKE = ("index", "hardening")  # no page of one question
PAGES = sorted(x for x in (ROOT / "docs" / "results").glob("*.md") if x.stem not in UNLIKE)
OPTIONAL = {"speed": "bench.json"}  # pages left out of the site while nothing is recorded
LITE = "EfficientNet-Lite0, 1 and 2"
FIVE = "EfficientNet-Lite0–2, 5×5"
CODE = "coverage, autoencoder 1-D"
FEW = "structure-few"
# What README says, and what it is taken from.


def frozen(recorded, filters, name="structure-small"):
    """Mean top-1 of an experiment on the structure of filters, as a share."""
    held = recorded.load(name)["conditions"]
    return next(row["mean"] for row in held if row["filters"] == filters) / 100


def replaced(recorded, keys, number=8):
    """Share of test images right on a few keys, without training: mean of five networks."""
    found = recorded.rows("natural-replacement", "conditions", keys=keys, number=number)
    return found[0]["mean"] / 100


QUOTED = [
    ("covers {} of the 5×5 filters", lambda r: r.claim(LITE, "5×5", CODE)["value"]),
    (
        "and {} of noise with the same covariance",
        lambda r: r.claim(LITE, "5×5", CODE)["covariance"],
    ),
    ("noise**: {} against", lambda r: r.explained(FIVE)),
    ("against {};", lambda r: r.explained(FIVE, "covariance")),
    ("filter by filter, {} are", lambda r: r.explained(FIVE, "q < 0.05")),
    ("and {} better than noise", lambda r: r.explained(FIVE, "q < 0.05 by layer")),
    ("noise as smooth**: {} against", lambda r: frozen(r, "of another network")),
    ("against {} of CIFAR-10", lambda r: frozen(r, "same covariance")),
    ("frozen idealised keys give {}", lambda r: frozen(r, "8 idealised keys")),
    ("noise of their covariance {}", lambda r: frozen(r, "8 keys of idealised covariance")),
    ("random keys {}", lambda r: frozen(r, "8 random keys")),
    ("learned filters {}", lambda r: frozen(r, "learned")),
    ("a tenth of the images: {},", lambda r: frozen(r, "8 idealised keys", FEW)),
    (
        "a tenth of the images: 54 %, {},",
        lambda r: frozen(r, "8 keys of idealised covariance", FEW),
    ),
    ("a tenth of the images: 54 %, 52 %, {} and", lambda r: frozen(r, "8 random keys", FEW)),
    ("52 %, 45 % and {} (", lambda r: frozen(r, "learned", FEW)),
    ("five networks classify {} of", lambda r: replaced(r, "its own filters", 0)),
    ("eight published keys {}", lambda r: replaced(r, "published B")),
    (
        "noise with the keys' covariance {}",
        lambda r: replaced(r, "noise of published B's covariance"),
    ),
    ("16 keys of another network {}", lambda r: replaced(r, "lines of another seed's network", 16)),
    ("on 16 of noise as smooth {}", lambda r: replaced(r, "lines of its covariance noise", 16)),
]
SURVIVED = "docs/discovery.md"
SURVIVED_QUOTED = [
    ("8 keys: {} by variance", "discovered by variance"),
    ("{} by outputs", "discovered by outputs, first round"),
    ("{} by lines", "lines (best of replacement.md)"),
    ("other domains keep {}", "discovered on networks of other domains"),
    ("random ones {}", "random"),
]
PROSE = sorted(
    str(page.relative_to(ROOT))
    for folder, kind in (
        ("docs", "*.md"),
        ("docs/howto", "*.md"),
        ("docs/theory", "*.md"),
        ("docs/reference", "*.md"),
        ("docs/tutorials", "*.md"),
        ("docs/tutorials", "*.ipynb"),
    )
    for page in (ROOT / folder).glob(kind)
)
FIGURE = re.compile(r"\d[\d.,]*\s*(?:%|points?\b)")
CONSTANT = ("5 %", "95 %")  # levels of tests and intervals, not results


@pytest.fixture
def filling(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    import filling

    yield filling
    for name in ("filling", "measured", "recorded", "described", "written"):
        sys.modules.pop(name, None)


@pytest.fixture
def recorded(filling):
    import recorded

    return recorded


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return " ".join(text.split())


@pytest.mark.parametrize(("words", "value"), QUOTED, ids=[words for words, _ in QUOTED])
def test_readme_quotes_what_was_recorded(words, value, recorded):
    assert words.format(recorded.percent(value(recorded))) in readme()


def test_no_other_figure_stands_in_the_readme(recorded):
    quoted = [recorded.percent(value(recorded)) for _, value in QUOTED]
    others = [x for x in FIGURE.findall(readme()) if x not in CONSTANT]
    assert sorted(others) == sorted(quoted)


def prose(page: str) -> str:
    """What a page says to its reader: no code of notebooks, nothing that is filled in."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(x["source"]) for x in cells if x["cell_type"] == "markdown")
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)
    return " ".join(text.split())


@pytest.mark.parametrize(("words", "keys"), SURVIVED_QUOTED)
def test_the_page_on_discovery_quotes_what_was_recorded(words, keys, recorded):
    mean = fmean(row["top1 8"] for row in recorded.rows("survival", keys=keys))
    assert words.format(recorded.percent(mean)) in prose(SURVIVED)


@pytest.mark.parametrize("page", PROSE)
def test_prose_quotes_no_other_figure(page):
    found = [x for x in FIGURE.findall(prose(page)) if x not in CONSTANT]
    assert len(found) == (len(SURVIVED_QUOTED) if page == SURVIVED else 0), found


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_result_page_says_its_command_and_its_caveat(page):
    text = page.read_text(encoding="utf-8")
    assert "about(" in text or "made_by(" in text
    assert "## Caveat" in text


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_result_page_types_no_figure(page):
    """Figures are filled in; what a paper says is quoted."""
    text = page.read_text(encoding="utf-8").split("## What the paper says")[0]
    typed = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)
    assert [x for x in FIGURE.findall(typed) if x not in CONSTANT] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_result_page_is_filled(page, filling):
    if not (ROOT / "benchmarks" / "results" / OPTIONAL.get(page.stem, "")).exists():
        pytest.skip("nothing is recorded")
    text = page.read_text(encoding="utf-8")
    filled = filling.environment().from_string(text).render()
    assert "{{" not in filled
    assert re.search(r"python (-m )?benchmarks[./]", filled)
    assert len(re.findall(r"^\| --- ", filled, flags=re.MULTILINE)) >= 1


def test_a_figure_that_was_not_recorded_is_an_error(recorded):
    with pytest.raises(KeyError):
        recorded.rows("coverage", LITE, "claims", claim="coverage of the moon")
    with pytest.raises(KeyError):
        recorded.result("coverage", "another network")


def test_pages_that_may_be_absent(filling, tmp_path, monkeypatch):
    import measured
    import recorded

    for module in (measured, recorded):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert not measured.present("speed")
    assert not measured.present("hardening")
    row = {"work": "a|b", "ours": "x", "beside": "y", "ratio": 0.001, "ratio, low": 0.0005,
           "ratio, high": 2, "met": False}  # fmt: skip
    bench = {"results": {"compared": [row], "growth": []}}
    (tmp_path / "bench.json").write_text(json.dumps(bench), encoding="utf-8")
    part = {"part": "Faults", "command": "python x.py", "machine": "m", "date": "d"}
    (tmp_path / "hardening").mkdir()
    (tmp_path / "hardening" / "faults.json").write_text(
        json.dumps(part | {"rows": [{"room": "r", "noticed": 0.5}]}), encoding="utf-8"
    )
    assert measured.present("speed")
    assert measured.present("hardening")
    assert measured.speed_missed() == 1
    assert "1/1,000" in measured.speed_table()
    assert "| r | 0.5 |" in measured.hardening()
