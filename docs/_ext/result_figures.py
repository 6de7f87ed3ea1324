"""Figures of the result pages, drawn from benchmarks/results when the site is built."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from statistics import mean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from recorded import claim, load, result, rows
from recorded import explained as share_explained

TRAINED, NULL, SOFT, OTHER = "#2f66b0", "#22252b", "#a9afba", "#c8452f"
NOISE = {  # filters of the experiment on structure that have none
    *("own first", "same covariance", "same spectra", "white", "8 keys of same covariance"),
    *("8 keys of idealised covariance", "8 keys of idealised spectra", "8 random keys"),
}


def _axes(width: float = 7.0, height: float = 3.4) -> Axes:
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _grouped(groups: Sequence[str], series: Mapping[str, tuple[Sequence[float], str]]) -> Axes:
    ax = _axes()
    width = 0.8 / len(series)
    for i, (label, (values, colour)) in enumerate(series.items()):
        places = [x - 0.4 + (i + 0.5) * width for x in range(len(groups))]
        ax.bar(places, [100 * v for v in values], width * 0.92, color=colour, label=label)
    ax.set_xticks(range(len(groups)), groups, fontsize=9)
    ax.legend(frameon=False, fontsize=8)
    return ax


def coverage() -> None:
    """Coverage by a code, beside nulls."""
    lite = "EfficientNet-Lite0, 1 and 2"
    banks = {
        "7×7, pose network": ("Pose network (convolutional pose machine)", "7×7"),
        "7×7, text detector": ("PP-OCRv6 text detector", "7×7"),
        "5×5, EfficientNets": (lite, "5×5"),
        "3×3, EfficientNets": (lite, "3×3"),
    }
    found = [claim(*bank, "coverage, autoencoder 1-D") for bank in banks.values()]
    ax = _grouped(
        list(banks),
        {
            "trained": ([x["value"] for x in found], TRAINED),
            "same covariance (strictest null)": ([x["covariance"] for x in found], NULL),
            "phases random": ([x["phase"] for x in found], "#737985"),
            "taps shuffled": ([x["tap-permuted"] for x in found], SOFT),
            "white": ([x["white"] for x in found], "#dadde3"),
        },
    )
    ax.set_ylabel("filters covered, %")


def explained() -> None:
    """Share explained by one receptive field, beside nulls."""
    names = [row["filters"] for row in result("matching", "explained")]
    ax = _grouped(
        [name.replace(", ", ",\n").replace(" (", "\n(") for name in names],
        {
            "trained": ([share_explained(n) for n in names], TRAINED),
            "same covariance": ([share_explained(n, "covariance") for n in names], NULL),
            "by layer": ([share_explained(n, "covariance by layer") for n in names], SOFT),
            "q < 0.05": ([share_explained(n, "q < 0.05") for n in names], OTHER),
        },
    )
    ax.tick_params(axis="x", labelsize=7)
    ax.set_ylabel("filters, %")


def squares() -> None:
    """Share of centres where predicted, in layers that subsample."""
    rows = [x for x in result("squares") if "do not subsample" not in x["layer"]]
    rows = sorted(rows, key=lambda row: row["of them where predicted"])
    ax = _axes(7, 4.6)
    labels = [f"{row['model']}, {row['layer'].strip('_')}" for row in rows]
    ax.barh(labels, [100 * row["of them where predicted"] for row in rows], color=TRAINED)
    noise = [100 * row["where predicted, same covariance"] for row in rows]
    ax.plot(noise, labels, "|", color=NULL, markersize=9, label="in noise, same covariance")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.tick_params(axis="y", labelsize=7)
    ax.set_xlabel("centres at the predicted place, % (layers that subsample)")


def replacement() -> None:
    """Same first class against the number of keys."""
    ax = _axes()
    lines = {
        ("lines", "outputs"): ("learned, chosen by outputs", TRAINED, "-"),
        ("lines", "recalibrated"): ("learned, batch norm recalibrated", TRAINED, "--"),
        ("lines", "plain"): ("learned, nothing else", TRAINED, ":"),
        ("random", "recalibrated"): ("random, batch norm recalibrated", NULL, "--"),
    }
    runs = result("replacement", "runs")
    for (keys, how), (label, colour, style) in lines.items():
        of = [r for r in runs if (r["keys"], r["how"]) == (keys, how)]
        counts = sorted({r["count"] for r in of})
        held = [[100 * r["top1"] for r in of if r["count"] == n] for n in counts]
        ax.plot(counts, [mean(x) for x in held], style, color=colour, label=label)
        ax.fill_between(
            counts, [min(x) for x in held], [max(x) for x in held], color=colour, alpha=0.1
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks([4, 8, 16, 32, 64, 128, 256], ["4", "8", "16", "32", "64", "128", "256"])
    ax.set_xlabel("keys for each kernel size")
    ax.set_ylabel("same first class, %")
    ax.legend(frameon=False, fontsize=8)


def discovery() -> None:
    """Share explained against the number of keys, beside the strictest null."""
    _, axes = plt.subplots(1, 3, figsize=(8, 2.9), sharey=True, layout="constrained")
    for ax, size in zip(axes, ("7", "5", "3"), strict=True):
        curve = [row for row in result("discovery", f"curve {size}") if row["round"] == 1]
        keys = [row["keys"] for row in curve]
        ax.plot(keys, [100 * row["value"] for row in curve], color=TRAINED, label="trained")
        ax.plot(
            keys,
            [100 * row["covariance"] for row in curve],
            "--",
            color=NULL,
            label="same covariance",
        )
        ax.plot(keys, [100 * row["white"] for row in curve], ":", color=SOFT, label="white")
        ax.set_title(f"{size}×{size}", fontsize=9)
        ax.set_xlabel("candidates left")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("variance explained, %")
    axes[0].legend(frameon=False, fontsize=8)


def _intervals(
    name: str, pairs: Mapping[str, tuple[str, str]], ax: Axes, colour: str, shift: float, label: str
) -> None:
    rows = {(r["condition"], r["reference"]): r for r in result(name, "comparisons")}
    found = [rows[pair] for pair in pairs.values()]
    x = [i + shift for i in range(len(pairs))]
    value = [row["difference"] for row in found]
    error = [[v - r["low"] for v, r in zip(value, found, strict=True)],
             [r["high"] - v for v, r in zip(value, found, strict=True)]]  # fmt: skip
    ax.errorbar(x, value, error, fmt="o", color=colour, label=label, capsize=3)


def initialization() -> None:
    """Difference to the default start, with 95 % intervals."""
    ax = _axes()
    sizes = ("3×3", "5×5", "7×7", "9×9", "11×11")
    for scheme, colour, shift in (("center-surround", OTHER, -0.1), ("covariance", NULL, 0.1)):
        pairs = {s: (f"{s} {scheme}, std=keep", f"{s} default") for s in sizes}
        _intervals("initialization", pairs, ax, colour, shift, scheme)
    ax.axhline(0, color=SOFT, linewidth=1)
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set_ylabel("points above the default start")
    ax.legend(frameon=False, fontsize=8)


def _means(name: str, measure: str = "top1") -> dict[str, float]:
    held: dict[str, list[float]] = {}
    for run in result(name, "runs"):
        held.setdefault(run["condition"], []).append(run[measure])
    return {condition: mean(values) for condition, values in held.items()}


def transfer() -> None:
    """Accuracy by source and control."""
    found = _means("transfer")
    sources = {
        "other seeds": "filters of fashion-mnist?samples=1500",
        "shoes and bags": "filters of fashion-mnist?samples=1500&classes=5,7,8,9",
        "digits": "filters of digits",
        "EfficientNet-Lite0": "filters of efficientnet-lite0",
    }
    controls = {"as they are": ("", TRAINED), "taps shuffled": (", tap-shuffled", "#737985"),
                "random": (", random", SOFT), "single taps": (", impulse", "#dadde3")}  # fmt: skip
    series = {label: ([found[s + end] / 100 for s in sources.values()], colour)
              for label, (end, colour) in controls.items()}  # fmt: skip
    ax = _grouped(list(sources), series)
    ax.axhline(found["learned"], color=OTHER, linewidth=1, label="learned, not frozen")
    ax.set_ylim(min(found.values()) - 1, max(found.values()) + 2)
    ax.set_ylabel("top-1, % (axis is cut)")
    ax.legend(frameon=False, fontsize=8, ncols=3)


def depth_curve() -> None:
    """Accuracy against the number of frozen layers."""
    ax = _axes()
    lines: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in result("depth-curve", "runs"):
        if run["options.tuned"] is False:
            line = lines.setdefault((run["options.layers"], run["options.kind"]), {})
            line.setdefault(int(run["options.n"]), []).append(run["top1"])
    colours = {"B": TRAINED, "A": OTHER, "R": SOFT}
    words = {"B": "same data", "A": "digits", "R": "random"}
    for (what, kind), found in sorted(lines.items()):
        points = sorted((n, mean(values)) for n, values in found.items())
        style = "o-" if what == "depthwise" else "s:"
        label = f"{what}, {words[kind]}"
        ax.plot(*zip(*points, strict=True), style, color=colours[kind], label=label)
    ax.axhline(_means("depth-curve")["learned"], color=NULL, linewidth=0.8)
    ax.set_xticks([1, 2, 4])
    ax.set_xlabel("first n layers, frozen (line: nothing frozen)")
    ax.set_ylabel("top-1, %")
    ax.legend(frameon=False, fontsize=8)


def natural_depth_curve() -> None:
    """Accuracy on natural images against the number of first layers from elsewhere, frozen."""
    held = load("depth-curve-natural")["conditions"]
    words = {
        "B": ("vehicles too, another seed", TRAINED),
        "A": ("animals", OTHER),
        "R": ("random first filters", SOFT),
    }
    ax = _axes()
    for i, (source, (word, colour)) in enumerate(words.items()):
        rows = [row for row in held if row["source"] == source and row["tuned"] is False]
        at = [row["n"] + 0.06 * (i - 1) for row in rows]
        ax.plot(at, [row["mean"] for row in rows], "o-", color=colour, label=word)
        ax.vlines(at, [row["low"] for row in rows], [row["high"] for row in rows], color=colour)
    learned = next(row for row in held if row["source"] == "learned")
    ax.axhline(learned["mean"], color=NULL, linewidth=0.8)
    ax.set_xticks(sorted({row["n"] for row in held if row["n"]}))
    ax.set_xlabel("first n layers, frozen (line: nothing frozen)")
    ax.set_ylabel("top-1 of vehicles, %\n(mean, 95 % interval; axis is cut)")
    ax.legend(frameon=False, fontsize=8, title="filters learned on", title_fontsize=8)


def frozen_keys() -> None:
    """Accuracy against the number of images."""
    found = _means("frozen-keys")
    ax = _axes()
    images = (500, 1500, 4500)
    lines = {
        "learned filters": (TRAINED, "o-"),
        "8 idealised keys, drawn, frozen": (OTHER, "o-"),
        "8 idealised keys, drawn, b learned": (OTHER, "o:"),
        "8 random keys, drawn, frozen": (SOFT, "o-"),
        "random first filters, frozen": (NULL, "o--"),
    }
    for name, (colour, style) in lines.items():
        ax.plot(
            images, [found[f"{n} images: {name}"] for n in images], style, color=colour, label=name
        )
    ax.set_xscale("log")
    ax.set_xticks(images, [f"{n:,}" for n in images])
    ax.minorticks_off()
    ax.set_xlabel("training images")
    ax.set_ylabel("top-1, %")
    ax.legend(frameon=False, fontsize=8)


def fine_tuning() -> None:
    """Accuracy after tuning, by replacement."""
    found = {k.removeprefix("tuned: "): v for k, v in _means("fine-tuning").items() if "tuned" in k}
    ax = _axes(7, 3.2)
    colours = [SOFT if "random" in name else TRAINED for name in found]
    ax.barh(list(found), list(found.values()), color=colours)
    ax.set_xlim(60, 90)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=8)
    ax.set_xlabel("top-1 after tuning, % (axis is cut)")


def emergence() -> None:
    """Accuracy and share of filters explained over steps."""
    _, axes = plt.subplots(1, 2, figsize=(7.6, 3), layout="constrained")
    for ax, curve in zip(axes, ("accuracy", "filters explained"), strict=True):
        for condition, colour in (("usual", TRAINED), ("std=0.02", OTHER), ("noise=1", SOFT)):
            held = result("emergence", "curves", curve)[condition]
            ax.plot(
                [mean(x) for x in zip(*held, strict=True)],
                "o-",
                markersize=3,
                color=colour,
                label=condition,
            )
        steps = ["0", *(str(2**i) for i in range(len(held[0]) - 2)), "end"]
        ax.set_xticks(range(len(steps)), steps, fontsize=7)
        ax.set_xlabel("step")
        ax.set_ylabel(f"{curve}, %")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)


def pictures() -> None:
    """Same first class on pictures against the number of keys, beside keys of noise."""
    runs = [row for row in result("pictures") if row["how"] == "recalibrated"]
    lines = {
        "lines": ("learned from the network", TRAINED, "o-"),
        "lines of same-covariance noise": ("learned from noise, same covariance", NULL, "o--"),
        "lines of phase-randomised filters": ("learned from filters of random phase", SOFT, "o--"),
        "random": ("random", "#dadde3", "o-"),
    }
    held = {
        keys: [(row["count"], row["top1"]) for row in runs if row["keys"] == keys] for keys in lines
    }
    ax = _by_number(lines, held)
    ax.set_ylabel("same first class, %")
    _legend_beside(ax)


def replaced() -> None:
    """Test images right against the number of keys, beside keys of noise."""
    lines = {
        "lines of the very filters": ("fitted to the very filters", SOFT, "o:"),
        "lines of another seed's network": ("learned from another network", TRAINED, "o-"),
        "lines of its covariance noise": ("learned from noise, same covariance", NULL, "o--"),
        "lines of its phase noise": ("learned from its random phases", SOFT, "o--"),
        "random": ("random", "#dadde3", "o-"),
    }
    found = result("natural-replacement", "conditions")
    held = {
        keys: [(row["number"], row["mean"] / 100) for row in found if row["keys"] == keys]
        for keys in lines
    }
    ax = _by_number(lines, held)
    before = next(row["mean"] for row in found if row["number"] == 0)
    ax.axhline(before, color=OTHER, linewidth=1, label="all filters as they are")
    ax.set_ylabel("test images right, %")
    _legend_beside(ax)


def _by_number(
    lines: Mapping[str, tuple[str, str, str]], held: Mapping[str, list[tuple[int, float]]]
) -> Axes:
    """Draw shares against the number of keys: for every line the mean of each number."""
    ax = _axes()
    for keys, (label, colour, style) in lines.items():
        counts = sorted({count for count, _ in held[keys]})
        means = [100 * mean(x for count, x in held[keys] if count == n) for n in counts]
        ax.plot(counts, means, style, color=colour, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    ax.set_xlabel("keys for each kernel size")
    ax.set_ylim(0, 100)
    return ax


def _legend_beside(ax: Axes) -> None:
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def natural() -> None:
    """Share explained by one receptive field on CIFAR-10, beside the strictest nulls."""
    groups = {
        "ConvNeXt,\nuntrained": ("convnext", "0"),
        "ConvNeXt,\ncovariance initialisation": ("convnext", "0, covariance"),
        "ConvNeXt,\ntrained": ("convnext", "end"),
        "ConvMixer,\ntrained": ("convmixer", "1024"),
    }
    held = [rows("natural", "explained", network=n, step=s)[0] for n, s in groups.values()]
    series = {"its own": TRAINED, "covariance": NULL, "phase": SOFT}
    words = {"its own": "the networks", "covariance": "same covariance", "phase": "phases random"}
    ax = _grouped(
        list(groups),
        {words[x]: ([mean(row[x]) for row in held], colour) for x, colour in series.items()},
    )
    ax.set_ylabel("filters explained, %")


def structure() -> None:
    """Accuracy of networks on frozen filters, by where the filters come from."""
    _by_condition("structure-small", "filters", "learned", NOISE)


def few() -> None:
    """The same with a tenth of the images."""
    _by_condition("structure-few", "filters", "learned", NOISE)


def natural_transfer() -> None:
    """Accuracy of networks on frozen filters, by the images on which these were learned."""
    _by_condition("transfer-natural-small", "filters", "learned", {"own first", "same covariance"})


def starts() -> None:
    """Accuracy of networks on natural images, by their first filters."""
    _by_condition("initialization-natural", "scheme", "default", {"covariance"})


def starts_by_size() -> None:
    """Difference to the default start on natural images, with 95 % intervals, by kernel size."""
    names = ("initialization-natural-sizes", "initialization-natural")
    held = [row for name in names for row in load(name)["comparisons"] if row["value"] == "top1"]
    ax = _axes()
    sizes = (3, 7, 11)
    schemes = {"center-surround": TRAINED, "keys": OTHER, "covariance": NULL}
    for shift, (scheme, colour) in zip((-0.1, 0.0, 0.1), schemes.items(), strict=True):
        for place, size in enumerate(sizes):
            wanted = {"size": size, "scheme": scheme, "std": "keep"}
            [row] = [
                row
                for row in held
                if row["condition"] == wanted and row["reference"]["scheme"] == "default"
            ]
            at, label = place + shift, scheme if not place else None
            ax.plot([at, at], [row["low"], row["high"]], color=colour)
            ax.plot(at, row["estimate"], "o", color=colour, markersize=5, label=label)
    ax.axhline(0, color=SOFT, linewidth=1)
    ax.set_xticks(range(len(sizes)), [f"{size}×{size}" for size in sizes])
    ax.set_ylabel("points above the default start\n(mean, 95 % interval)")
    ax.legend(frameon=False, fontsize=8, title="first filters, of one scale", title_fontsize=8)


def _by_condition(name: str, factor: str, reference: str, noise: Container[str]) -> None:
    """Draw the mean of every condition of a record with its interval, in order of the means."""
    held = sorted(load(name)["conditions"], key=lambda row: row["mean"])
    ax = _axes(7, 0.6 + 0.32 * len(held))
    for i, row in enumerate(held):
        shaped = SOFT if row[factor] in noise else TRAINED
        colour = NULL if row[factor] == reference else shaped
        ax.plot([row["low"], row["high"]], [i, i], color=colour)
        ax.plot(row["mean"], i, "o", markersize=5, color=colour)
    ax.set_yticks(range(len(held)), [row["label"] for row in held], fontsize=8)
    ax.set_xlabel("top-1 on test images, % (mean and 95 % interval; axis is cut)")


def speed() -> None:
    """Ratios of seconds, ours to the other's, with their middle halves."""
    found = result("bench", "compared")[::-1]
    ax = _axes(7.6, 0.6 + 0.32 * len(found))
    for i, row in enumerate(found):
        colour = OTHER if row["met"] is False else TRAINED
        ax.plot([row["ratio, low"], row["ratio, high"]], [i, i], color=colour)
        ax.plot(row["ratio"], i, "o", markersize=4, color=colour)
    ax.axvline(1, color=SOFT, linewidth=1)
    ax.set_yticks(range(len(found)), [f"{r['ours']} / {r['beside']}\n{r['work']}" for r in found])
    ax.tick_params(axis="y", labelsize=6)
    ax.set_xscale("log")
    ax.set_xlabel("seconds, ours / the other's (red: over its limit)")


def growth() -> None:
    """Seconds and peak memory against the number of filters."""
    found = [row for row in result("bench", "growth") if row["seconds"] is not None]
    _, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for ax, column in zip(axes, ("seconds", "memory"), strict=True):
        for job in dict.fromkeys(row["job"] for row in found):
            of = [row for row in found if row["job"] == job]
            ax.plot([r["filters"] for r in of], [r[column] for r in of], "o-", ms=3, label=job)
        ax.set(xscale="log", yscale="log", xlabel="filters of 7×7")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds")
    axes[1].set_ylabel("peak memory of the process, GB")
    axes[0].legend(frameon=False, fontsize=7)
