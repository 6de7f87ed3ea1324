"""The benchmark's own logic, on clocks that the tests move: nothing here is timed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("benchmarks.common", reason="the benchmarks are in the repository only")

from benchmarks.bench import check, growth, report
from benchmarks.bench.runner import Arm, Clocks, Comparison, interleave, summary


class Hands:
    """Clocks that only the arms move, and what was done on them."""

    def __init__(self) -> None:
        self.wall, self.processor, self.order = 0.0, 0.0, list[str]()
        self.clocks = Clocks(lambda: self.wall, lambda: self.processor)

    def arm(self, name: str, seconds: float, items: float = 1, **options: Any) -> Arm:
        def run() -> float:
            self.order.append(name)
            self.wall += seconds
            self.processor += seconds / 2
            return 7.0

        return Arm(name, run, items, **options)


def test_ratios_are_of_rounds_and_of_items() -> None:
    hands = Hands()
    ours, rival = hands.arm("ours", 6.0, items=3), hands.arm("rival", 8.0, items=2)
    comparison = Comparison(
        "match", "some", "filter", ours, (rival,), {"rival": 0.4}, quality="r²", seconds=1e9
    )
    [row] = summary(comparison, interleave(comparison, hands.clocks))
    assert (row["seconds"], row["seconds beside"], row["ratio"]) == (2.0, 4.0, 0.5)
    assert row["ratio, processor"] == 0.5 and row["rounds"] == comparison.rounds
    assert row["met"] is False and row["quality ours"] == 7.0


def test_arms_take_turns_in_changing_order_after_a_warm_up() -> None:
    hands = Hands()
    arms = [hands.arm(name, 1.0) for name in "abc"]
    comparison = Comparison("x", "x", "x", arms[0], tuple(arms[1:]), rounds=20, seconds=1e9)
    times = interleave(comparison, hands.clocks)
    rounds = [tuple(hands.order[i : i + 3]) for i in range(0, len(hands.order), 3)]
    assert len(rounds) == 21 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2
    assert [len(t) for t in times.wall.values()] == [20] * 3


def test_whole_processes_need_no_warm_up() -> None:
    hands = Hands()
    one = Comparison("x", "x", "x", hands.arm("a", 1.0), (), rounds=2, warm_up=False)
    assert len(interleave(one, hands.clocks).wall["a"]) == len(hands.order) == 2


def test_time_ends_the_rounds_but_not_before_the_third() -> None:
    hands = Hands()
    arms = hands.arm("a", 5.0), hands.arm("b", 5.0)
    for seconds, expected in ((1.0, 3), (45.0, 5)):
        one = Comparison("x", "x", "x", arms[0], arms[1:], rounds=9, seconds=seconds)
        assert len(interleave(one, hands.clocks).wall["a"]) == expected


def test_an_arm_may_tell_its_own_seconds() -> None:
    hands = Hands()
    arm = hands.arm("a", 5.0, items=7, tells_seconds=True)
    one = Comparison("x", "x", "x", arm, (hands.arm("b", 1.0),), most=0.5)
    times = interleave(one, hands.clocks)
    assert set(times.wall["a"]) == {1.0} and times.quality["a"] is None
    assert summary(one, times)[0]["met"] is False


@pytest.mark.parametrize(
    ("now", "fine"), [([1.4], True), ([1.6, 1.7, 1.4], True), ([1.6] * 3, False)]
)
def test_what_is_worse_is_measured_again(
    now: list[float], fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(now)
    monkeypatch.setattr(check, "measure", lambda comparison: left.pop(0))
    one = Comparison("x", "x", "x", Hands().arm("a", 1.0), ())
    assert check.verdict(one, 1.0, check.WORSE) == (min(now), fine)
    assert not left


def test_recorded_ratios_are_compared_and_other_processors_given_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = Hands().arm("a", 1.0)
    monkeypatch.setattr(check, "comparisons", lambda: [Comparison("match", "", "", arm, ())])
    factor = 2.0
    monkeypatch.setattr(check, "measure", lambda comparison: factor)
    file = tmp_path / "recorded.json"
    check.record(file)
    assert json.loads(file.read_text())["ratios"] == {"match": 2.0}
    assert check.check(file)
    factor = 2.0 * (check.WORSE + check.ELSEWHERE) / 2
    assert not check.check(file)
    monkeypatch.setattr(check, "processor", lambda: "another one")
    assert check.check(file)
    factor = 2.0 * check.ELSEWHERE * 1.1
    assert not check.check(file)


def test_every_recorded_ratio_has_its_comparison() -> None:
    recorded = json.loads(check.RECORDED.read_text())["ratios"]
    assert all(ratio > 0 for ratio in recorded.values())
    assert [c.subject for c in check.comparisons()] == list(recorded)


def test_growth_leaves_out_what_would_not_fit_and_says_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hands = Hands()

    def job(name: str, count: int) -> tuple[float, float]:
        seconds = count * (1.0 if name == "kf.match" else 0.001)
        hands.wall += seconds
        return seconds, 0.5

    monkeypatch.setattr(growth, "_job", job)
    monkeypatch.setattr(growth, "_atlas", lambda count: (*job("atlas", count), 6.0))
    monkeypatch.setattr(growth, "time", SimpleNamespace(perf_counter=lambda: hands.wall))
    rows = growth.measure((10, 100, 1000), 500.0)
    left = {(r["job"], r["filters"]): r["left_out"] for r in rows if r["left_out"]}
    assert left == {("kf.match", 1000): 1000.0}
    assert len(rows) == 3 * (len(growth.JOBS) + 1)
    pages = [r for r in rows if r["page"]]
    assert len(pages) == 3 and not any(r["met"] for r in pages), "the page is too large"
    [whole] = growth.measure((1_000_000,), 1e9)[-1:]
    assert (whole["met"], "GB" in whole["limits"]) == (False, True)


def test_tables_and_figure_hold_what_was_measured(tmp_path: Path) -> None:
    hands = Hands()
    ours = hands.arm("kf.match", 6.0)
    one = Comparison(
        "match", "some", "filter", ours, (hands.arm("a pass |X·D|", 4.0),), quality="r²"
    )
    compared = summary(one, interleave(one, hands.clocks))
    grown = [growth._row(job, n, n * 1e-3, 0.2) for job in ("kf.match", "other") for n in (10, 100)]
    report.save(report.about("make bench"), compared, grown, 60.0, tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["results"]["compared"][0]["ratio"] == 1.5
    assert {"machine", "processor", "date", "command", "seeds", "versions"} <= set(found["about"])
    lines = (tmp_path / "bench.md").read_text().splitlines()
    [row] = [line for line in lines if "a pass" in line]
    [header] = [line for line in lines if line.startswith("| work")]
    assert row.replace(r"\|", "").count("|") == header.count("|")
    ElementTree.parse(tmp_path / report.FIGURE)


def test_rivals_find_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyscsp", reason="the extra bench is not installed")
    from benchmarks.bench import rivals

    from keyfilters.scalespace import discrete_gaussian

    kernel = rivals.kernel("0", 0.9)
    assert np.allclose(kernel, discrete_gaussian(0.81, 3).numpy(), atol=1e-6)
    monkeypatch.setattr(rivals, "PAIRS", [("d", "0"), ("0", "dd")])
    unit = np.stack([rivals.atom(("d", "0"), 0.7, 1.1), rivals.atom(("0", "dd"), 1.2, 0.6)])
    assert (rivals.scipy_search(unit) > 0.999).all()
    assert (rivals.grid_search(unit) > 0.98).all()


def test_pieces_of_drawn_filters_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PIECE", 20)
    filters = growth.drawn(50)
    assert filters.shape == (50, 7, 7) and filters.dtype == np.float32
    assert len(np.unique(filters.reshape(50, -1), axis=0)) == 50
