from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.report.experiment_page import render_experiment, write_experiment
from tests.report.test_page import Checker

MEANS = {"default": 61.0, "center-surround": 63.4, "keys <b>& bias</b>": 61.3}


def example() -> dict[str, Any]:
    """A record of three conditions and five seeds, of which one run failed."""
    runs: list[dict[str, Any]] = [
        {"scheme": name, "seed": seed, "top1": mean + 0.3 * seed, "status": "done"}
        for name, mean in MEANS.items()
        for seed in range(5)
    ]
    runs[-1] |= {"top1": None, "status": "failed"}
    conditions = [
        {"scheme": name, "label": name, "seeds": 5, "missing": 0, "mean": mean, "sd": 0.4,
         "low": mean - 1, "high": mean + 1}
        for name, mean in MEANS.items()
    ]  # fmt: skip
    comparison = {"question": "Does it help?", "sentence": "center-surround is above default.",
                  "estimate": -2.4, "low": -3.0, "high": -1.8, "p_holm": 0.01, "p_equal_holm": None,
                  "effect": 2.0, "seeds": 5, "missing": 0, "verdict": "higher"}  # fmt: skip
    lines = {name: [[mean - 3 + x for x in range(4)]] * 3 for name, mean in MEANS.items()}
    lines["default"][0] = [58.0, 59.0, None, None]  # type: ignore[list-item]
    chart = {"title": "", "x": "epoch", "measure": "top-1, %", "at": [], "lines": lines}
    steps = {"at": [0, 1, 2, 4, 256], "lines": {"A": [[0, 1, 2, 3, 4]]}, "x": "optimiser step"}
    return {
        "title": "Does the first shape of the filters matter?",
        "explanation": "They start as random numbers, or as shapes.",
        "short": "1 of 1 comparisons.",
        "measure": "top-1 accuracy, %",
        "factors": ["scheme"],
        "runs": runs,
        "conditions": conditions,
        "comparisons": [comparison],
        "charts": [chart, {**chart, **steps}],
        "matrices": [{"caption": "Means", "columns": ["3", "5"], "rows": ["a"],
                      "values": [[4.0, None]]}],
        "failures": ["keys, seed 4, failed: the loss is not finite"],
        "options": {"epochs": 20},
        "environment": {"keyfilters": "0.1.0", "date": "2025-01-31"},
        "command": "keyfilters experiment initialization",
        "seconds": 5430.0,
    }  # fmt: skip


def test_a_page_is_one_file_with_escaped_names(tmp_path: Path) -> None:
    path = write_experiment(example(), tmp_path / "new" / "experiment.html")
    html = path.read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.fetched == [] and checker.scripts == 0
    assert "<b>& bias" not in html and "keys &lt;b&gt;&amp; bias&lt;/b&gt;" in html
    assert html == render_experiment(example()), "the same record gives the same bytes"
    targets = re.findall(r'<a href="#([^"]+)"', html)
    assert targets and all(f'id="{target}"' in html for target in targets)


def test_a_page_shows_the_record() -> None:
    record = example()
    html = render_experiment(record)
    words = [record["short"], record["comparisons"][0]["sentence"], record["failures"][0], "1.5 h"]
    words += ["1 of 15 runs failed", "−2.40", "−3.00 to −1.80", "0.010", record["command"], "2025"]
    assert [x for x in words if x not in html] == []
    assert html.count('class="claim"') == 1 and html.count("<svg") == 3


def test_dots_show_every_run_and_mean() -> None:
    html = render_experiment(example())
    svg = html[html.index("<svg") : html.index("</svg>")]
    dots = len(re.findall(r"<use ", svg))
    assert dots == 14 + len(MEANS) + svg.count('id="xtick_'), "runs, means, ticks of the axis"


def test_curves_over_steps_that_spread_far_are_logarithmic() -> None:
    html = render_experiment(example())
    svg = html[html.rindex("<svg") :]
    assert ">100<" in svg and ">10<" in svg and "optimiser step" in svg


def test_a_page_of_little_says_little() -> None:
    record = example()
    for row in record["conditions"]:
        row |= {"mean": None, "low": None, "high": None, "sd": None}
    for run in record["runs"]:
        run["top1"] = None
    record |= {"charts": [], "comparisons": [], "matrices": [], "failures": []}
    for name in ("options", "environment", "command", "seconds"):
        del record[name]
    html = render_experiment(record)
    assert "nan" not in html.lower() and 'id="curves"' not in html and "runs failed" not in html
    assert html.count("<b>–</b>") == len(MEANS)


def test_a_record_that_lacks_a_part_is_refused() -> None:
    record = example()
    del record["runs"]
    with pytest.raises(KeyFiltersError, match="lacks runs"):
        render_experiment(record)
