from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.experiments import compare, sentence, summarise
from keyfilters.report.experiment_figures import learning_curves, shade
from keyfilters.report.experiment_page import (
    ExperimentReport,
    Matrix,
    render_experiment,
    write_experiment,
)
from tests.report.test_page import Checker

NAMES = {"default": 61.0, "center-surround": 63.4, "keys <b>& bias</b>": 61.3, "all impulses": 52.0}


def example() -> ExperimentReport:
    """An experiment of four conditions and five seeds, of which one run failed."""
    generator = np.random.default_rng(0)
    seeds = generator.normal(0, 1, 5)
    rows = [
        (name, seed, mean + seeds[seed] + generator.normal(0, 0.4))
        for name, mean in NAMES.items()
        for seed in range(5)
    ]
    runs = pd.DataFrame(rows, columns=["condition", "seed", "value"])
    runs.loc[19, "value"] = np.nan
    comparisons = compare(runs, "value", reference="default")
    epochs = 1 - np.exp(-np.arange(1, 21) / 5)
    curves = {
        name: np.array([mean + seed for seed in seeds])[:, None] * epochs
        for name, mean in NAMES.items()
    }
    curves["default"][0, 12:] = np.nan
    sets = ["textures", "digits", "photographs"]
    gain = pd.DataFrame([[0, 1.5, -2], [0.3, 0, np.nan], [4, 2, 0]], sets, sets)
    gain.index.name, gain.columns.name = "source", "target"
    return ExperimentReport(
        title="Does the first shape of the filters matter?",
        explanation="The depthwise filters of a network start as random numbers. Here they start "
        "as shapes found in trained networks instead, and everything else stays the same.",
        answers=[
            (f"Does {row.condition} help?", sentence(row._asdict()))
            for row in comparisons.itertuples()
        ],
        measure="top-1 accuracy, %",
        runs=runs,
        conditions=summarise(runs, "value"),
        comparisons=comparisons,
        curves={"": curves},
        matrices=[Matrix(gain, "Gain over training from scratch, in points.", middle=0.0)],
        options={"network": "small", "epochs": 20, "learning rate": 0.001},
        failures=["all impulses, seed 4, failed in 2 of 2 attempts: the loss is not finite"],
        environment={"keyfilters": "0.1.0", "torch": "2.6", "date": "2025-01-31"},
        command="keyfilters experiment initialization --seeds 5 --out out/initialization",
        seconds=5430.0,
    )


def test_page_is_one_file_with_escaped_names(tmp_path: Path) -> None:
    path = write_experiment(example(), tmp_path / "new" / "experiment.html")
    html = path.read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.fetched == [] and checker.scripts == 0
    assert "url(http" not in html and "@import" not in html
    assert "<b>& bias" not in html and "keys &lt;b&gt;&amp; bias&lt;/b&gt;" in html
    assert html == render_experiment(example()), "the same data give the same bytes"
    targets = re.findall(r'<a href="#([^"]+)"', html)
    assert targets and all(f'id="{target}"' in html for target in targets)


def test_page_says_what_was_found_and_what_failed() -> None:
    report = example()
    html = render_experiment(report)
    for question, answer in report.answers[:1]:
        assert question in html and answer in html
    for words in (
        "center-surround beats default by",
        "<b>1 of 20 runs failed.</b>",
        "the loss is not finite",
        "<b>19</b><span>of 20 runs with a result",
        "1.5 h",
        "center-surround − default",
        "below 0.001",
        "Hedges",
        "source \\ target",
        "−2.0",
        "keyfilters experiment initialization --seeds 5",
        "learning rate",
    ):
        assert words in html, words


def test_page_of_little_says_little() -> None:
    full = example()
    runs = full.runs[full.runs["seed"] == 0].copy()
    runs.loc[0, "value"] = np.nan  # a condition without any result
    report = ExperimentReport(
        "One seed", "Nothing.", [], "loss", runs, summarise(runs, "value"), unit=""
    )
    html = render_experiment(report)
    assert "nan" not in html.lower().replace("resonan", "")
    assert (
        'id="comparisons"' not in html and 'id="curves"' not in html and "failed.</b>" not in html
    )
    assert html.count("<td>–</td>") == 2 * len(NAMES), "neither sd nor interval of one seed"
    assert html.count("<b>–</b>") == 1


def test_dots_show_every_run_and_mean() -> None:
    report = example()
    html = render_experiment(report)
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert all(name in svg for name in ("default", "center-surround", "top-1 accuracy, %"))
    dots = len(re.findall(r"<use ", svg))
    ticks = svg.count('id="xtick_')
    assert dots == 19 + len(NAMES) + ticks, "runs, means, ticks of the axis"


def test_curves_over_something_else_than_epochs() -> None:
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 375]
    curves = {"usual": np.linspace(0, 50, 11)[None], "noise": np.linspace(0, 20, 11)[None]}
    axes = {"shares": ("optimiser step", steps, "explained, %")}
    html = render_experiment(dataclasses.replace(example(), curves={"shares": curves}, axes=axes))
    svg = html[html.rindex("<svg") :]
    for words in ("optimiser step", "explained, %", ">100<", ">10<"):  # a logarithmic axis
        assert words in svg, words
    few = learning_curves("", {"depthwise": np.array([[80.0, 79.0]])}, "top-1", "n", [0, 1])
    assert ">1<" in few and "epoch" not in few


def test_cells_are_shaded_in_order_and_legible() -> None:
    styles = shade(pd.DataFrame([[-4.0, 0.0, 1.0], [4.0, np.nan, 4.0]]), 0.0)
    assert styles[1][1] == "" and styles[1][0] == styles[1][2]
    assert styles[0][1].startswith("background:#f") and styles[0][0].endswith("#fff")
    same = shade(pd.DataFrame([[2.0, 2.0]]))
    assert same[0][0] == same[0][1] and same[0][0].startswith("background:#")
    assert shade(pd.DataFrame([[np.nan]])) == [[""]]


def test_tables_that_do_not_fit_are_refused() -> None:
    report = example()
    lacking = dataclasses.replace(report, conditions=report.conditions.drop(columns="low"))
    with pytest.raises(KeyFiltersError, match="the table conditions lacks low; it has condition,"):
        render_experiment(lacking)
    wrong = Matrix(report.matrices[0].values, "Gain.", text=pd.DataFrame([["a"]]))
    with pytest.raises(KeyFiltersError, match=r"the text of a matrix is \(1, 1\); \(3, 3\)"):
        render_experiment(dataclasses.replace(report, matrices=[wrong]))
