"""What the experiment on the emergence of patterns supports, in sentences."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from keyfilters.experiments.emergence import USUAL, atlas_name
from keyfilters.experiments.findings import Axis, Findings, Question, answered
from keyfilters.experiments.results import read_curves, read_record
from keyfilters.experiments.runs import Run
from keyfilters.experiments.statistics import LEVEL, TREND, summarise

__all__ = ["emergence_findings", "rank_correlations"]

EXPLANATION = (
    "Trained depthwise filters look like edges, centres and bars. When in training do these "
    "patterns appear, and does their share tell good training from bad (a question that the "
    "reviewers of babaiee2024unveiling asked)? The same small network is trained as usual and in "
    "ways that make it worse: too few steps or images, wrong labels, a learning rate that is too "
    "small or too large. Of weights kept on the way it is told how many filters one idealised "
    "receptive field explains, minus how many of the same filters with shuffled taps, and how much "
    "of the filters' variance the eight idealised keys explain, minus what eight random ones do."
)
MEASURES = {
    "beyond": "% of filters explained by a receptive field, beyond shuffled taps",
    "keys_beyond": "% of variance explained by the eight keys, beyond random keys",
    "r2": "median r² of the receptive fields",
    "shuffled": "% of the same filters with shuffled taps explained (a control)",
    "random_keys": "% of variance explained by eight random keys (a control)",
    "train_loss": "training loss",
}
FEWEST, FEWEST_KINDS = 20, 6  # runs, and kinds of training among them, for a rank correlation
DRAWS = 2000


def emergence_findings(table: pd.DataFrame, out: str | os.PathLike[str]) -> Findings:
    """Say what a table of `keyfilters.experiments.emergence` supports.

    When do shares reach half of what they end at, and when does the accuracy; does a share go with
    the accuracy over all runs; and does it tell each worse training from the usual one?

    Args:
        table: as returned.
        out: the folder of its runs.

    Raises:
        KeyFiltersError: nothing that can be compared has run.
    """
    pairs = [(name, USUAL) for name in dict.fromkeys(table["condition"]) if name != USUAL]
    worse = Question("Which training gives another accuracy than the usual one?", pairs)
    comparisons, answers_top1 = answered(table, "top1", [worse])
    flags = Question("Which training gives another share of filters explained?", pairs)
    shares, answers_beyond = answered(table, "beyond", [flags], beats="exceeds")
    correlations = rank_correlations(table)
    curves = {
        name: read_curves(table, out, f"{name}_on_the_way")
        for name in ("beyond", "keys_beyond", "accuracy")
    }
    steps = {name: x[0] for name, x in read_curves(table, out, "steps").items()}
    when = {
        f"When do the patterns appear in training ({name})?": _when(name, curves, steps[name])
        for name in steps
        if name == USUAL or name.startswith("std")
    }
    together = _together(correlations)
    flagged = _flagged(comparisons, shares)
    atlases = _atlases(table, out)
    answers = [
        *when.items(),
        *(
            (f"Which patterns does the atlas see ({x})?", atlas.words)
            for x, atlas in atlases.items()
        ),
        ("Does the share explained go with the accuracy?", together),
        ("Does the share explained flag broken training?", flagged),
        *((question.words, answer) for question, answer in (*answers_top1, *answers_beyond)),
    ]
    first = next(iter(steps))
    same = [name for name in steps if np.array_equal(steps[name], steps[first])]
    panels = {"filters explained": "beyond", "explained by keys": "keys_beyond", "accuracy": ""}
    seen = {f"atlas of {x}": atlas for x, atlas in atlases.items() if atlas.lines}
    headlines = [f"{words} {answer}" for words, answer in when.items()]
    return Findings(
        title="When do the patterns appear, and do they tell good training from bad?",
        explanation=EXPLANATION,
        short=" ".join([*headlines, f"{together.partition('. ')[0].rstrip('.')}.", flagged]),
        answers=answers,
        measure="top-1 accuracy on the test images, %",
        table=table,
        conditions=summarise(table, "top1"),
        comparisons=pd.concat([comparisons, shares], ignore_index=True),
        curves={
            **{
                panel: {name: curves[value or "accuracy"][name] for name in same}
                for panel, value in panels.items()
            },
            **{panel: atlas.lines for panel, atlas in seen.items()},
        },
        axes={
            **{
                panel: Axis("optimiser step", steps[first].tolist(), MEASURES.get(value, ""))
                for panel, value in panels.items()
            },
            **{
                panel: Axis("optimiser step", atlas.steps, "% of filters that the atlas puts there")
                for panel, atlas in seen.items()
            },
        },
        matrices=[
            (_means(table), "Means over the seeds at the end of training, %"),
            (
                correlations.set_index("measure")[["rho", "low", "high"]],
                "Spearman's rank correlation with accuracy, and its 95 % interval",
            ),
        ],
    )


def rank_correlations(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Correlate the ranks of every measure with those of the accuracy, over all finished runs.

    Runs of one condition are alike, so that the interval is drawn by resampling whole conditions.

    Args:
        table: of `keyfilters.experiments.emergence`.
        seed: of the draws.

    Returns:
        One row a measure: measure, rho (Spearman), low and high (95 %, percentiles of the
        bootstrap over conditions), runs and conditions. Fewer than 20 runs or 6 conditions, or a
        measure that is constant, give NaN.
    """
    done = table[table["status"] == "done"]
    done = done.reset_index(drop=True)
    groups = list(done.groupby("condition", sort=False).indices.values())
    generator = np.random.default_rng(seed)
    drawn = [
        np.concatenate([groups[i] for i in generator.integers(len(groups), size=len(groups))])
        for _ in range(DRAWS if len(done) >= FEWEST and len(groups) >= FEWEST_KINDS else 0)
    ]
    found = []
    for name, words in MEASURES.items():
        rho, low, high = (np.nan,) * 3
        if drawn:
            both = done[[name, "top1"]].to_numpy(dtype=np.float64)
            rho = _rho(both)
            rhos = [x for x in (_rho(both[rows]) for rows in drawn) if not np.isnan(x)]
            low, high = np.percentile(rhos, (2.5, 97.5)) if rhos else (np.nan, np.nan)
        found.append((words, rho, low, high, len(done), len(groups)))
    return pd.DataFrame(found, columns=["measure", "rho", "low", "high", "runs", "conditions"])


def _rho(both: NDArray[np.float64]) -> float:
    """Spearman's correlation of two columns; NaN where one is constant."""
    ranks = rankdata(both[~np.isnan(both).any(1)], axis=0)
    if len(ranks) < 2 or (np.ptp(ranks, axis=0) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])


def _together(correlations: pd.DataFrame) -> str:
    """Say which measures go with the accuracy."""
    row = correlations.iloc[0]
    if row["runs"] < FEWEST or row["conditions"] < FEWEST_KINDS:
        needed = f"at least {FEWEST} of {FEWEST_KINDS} are needed"
        got = f"{row['runs']} runs of {row['conditions']} kinds of training"
        return f"Too few runs to say ({got}, {needed})."
    if np.isnan(row["rho"]):
        return "All runs have the same share explained, so that there is nothing to rank."
    told = []
    for _, one in correlations.iterrows():
        number = f"{one['rho']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
        told.append(f"{one['measure']}: {'all alike' if np.isnan(one['rho']) else number}")
    found = "goes with" if row["low"] > 0 else "goes against" if row["high"] < 0 else None
    start = (
        f"The share of filters explained {found} the accuracy"
        if found
        else "That the share of filters explained goes with the accuracy was not found"
    )
    many = f"{row['runs']} runs of {row['conditions']} kinds of training"
    text = f"{start}: rank correlation {row['rho']:+.2f} (95 % interval {row['low']:+.2f} to "
    text += f"{row['high']:+.2f}, {many}). All measures: {'; '.join(told)}."
    return text.replace("-", "−")


def _flagged(accuracy: pd.DataFrame, shares: pd.DataFrame) -> str:
    """Count how often a loss of accuracy comes with a smaller share, and the opposite."""
    if (accuracy["seeds"] < TREND).any():
        return f"Too few seeds to say (at least {TREND} are needed)."
    clear = (accuracy["p_holm"] < LEVEL).to_numpy()
    worse = clear & (accuracy["difference"] < 0).to_numpy()
    found = (shares["p_holm"] < LEVEL).to_numpy()
    fewer = found & (shares["difference"] < 0).to_numpy()
    more = found & (shares["difference"] > 0).to_numpy()
    names = accuracy["condition"].to_numpy()

    def listed(chosen: NDArray[np.bool_]) -> str:
        return f"{chosen.sum()} ({', '.join(names[chosen])})" if chosen.any() else "none"

    rest = ~worse
    has = "has" if (worse & fewer).sum() == 1 else "have"
    return (
        f"Of {worse.sum()} kinds of training that are worse than the usual one, "
        f"{listed(worse & fewer)} {has} a smaller share, {listed(worse & more)} a larger one; of "
        f"{rest.sum()} that are not found to be worse, {listed(rest & fewer)} a smaller one and "
        f"{listed(rest & more)} a larger one."
    )


def _when(
    name: str, curves: Mapping[str, Mapping[str, NDArray[np.float64]]], steps: NDArray[np.float64]
) -> str:
    """Say after how many steps half of the final value is reached, over the seeds."""
    told = []
    for measure, words in (
        ("accuracy", "half of what the accuracy gains"),
        ("beyond", "half of what the share of filters explained gains"),
    ):
        values = curves[measure][name]
        gained = values - values[:, :1]
        growing = gained[gained[:, -1] > 0]
        if len(growing) < TREND:
            told.append(f"{words} cannot be placed, since too few seeds gain")
            continue
        reached = np.array([_first(row >= row[-1] / 2, steps) for row in growing])
        low, high = reached.min(), reached.max()
        span = f"step {low:.0f}"
        if low < high:
            span = f"steps {low:.0f} to {high:.0f}, by the seed"
        some = f" ({len(growing)} of {len(gained)} seeds gain)" * (len(growing) < len(gained))
        told.append(f"{words} is there at {span}{some}")
    last = curves["beyond"][name][:, -1]
    first = curves["beyond"][name][:, 0]
    ends = f"explained are {first.mean():.1f} % at first and {last.mean():.1f} % in the end"
    text = f"Of {int(steps[-1])} steps, {', '.join(told)}; {ends}, beyond shuffled taps."
    return text.replace("-", "−")


def _first(reached: NDArray[np.bool_], steps: NDArray[np.float64]) -> float:
    """First step from which on it stays reached."""
    late = np.flatnonzero(~reached)
    return float(steps[late[-1] + 1 if len(late) else 0])


def _means(table: pd.DataFrame) -> pd.DataFrame:
    columns = {"top1": "accuracy", "explained": "explained", "shuffled": "shuffled taps"}
    columns |= {"keys": "by 8 keys", "random_keys": "by 8 random keys"}
    means = table.groupby("condition", sort=False)[list(columns)].mean()
    return means.rename(columns=columns).rename_axis(index="training")


@dataclass(frozen=True)
class _Seen:
    """What an atlas of kept weights says: its shares over the steps, and in words."""

    words: str
    steps: list[float] = field(default_factory=list)
    lines: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def _atlases(table: pd.DataFrame, out: str | os.PathLike[str]) -> dict[str, _Seen]:
    """Read every atlas that was to be made, by quality."""
    found = {}
    done = table[table["status"] == "done"]
    for quality, part in done.groupby("condition", sort=False):
        folder = Path(out) / Run(atlas_name(str(quality), list(part["seed"])), 0).folder
        if (folder / "result.json").exists():
            found[str(quality)] = _seen(read_record(folder / "result.json")["result"])
        elif (folder / "run.json").exists():
            found[str(quality)] = _Seen(f"It could not be made, see {folder.name}/error.txt.")
    return found


def _seen(result: dict[str, Any]) -> _Seen:
    lines = {
        key.removeprefix("kind "): np.array([value])
        for key, value in result.items()
        if key == "classified" or key.startswith("kind ")
    }
    ends = sorted(((x[0, -1], name) for name, x in lines.items() if name != "classified"))[::-1]
    kinds = ", ".join(f"{name} {share:.1f} %" for share, name in ends if share >= 0.5)
    first, last = lines["classified"][0, [0, -1]]
    words = f"It classifies {first:.1f} % of the filters at first and {last:.1f} % in the end"
    return _Seen(f"{words}{f' ({kinds})' if kinds else ''}.", result["steps"], lines)
