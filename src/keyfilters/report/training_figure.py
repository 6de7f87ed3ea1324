"""How a training run went, in one picture: loss and accuracy, and what its filters became."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from keyfilters.report.drawing import MUTED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["training_figure"]

TRAINING, VALIDATION, MEAN, TEST = "#2f66b0", "#c44536", "#e0a021", "#222222"


def training_figure(
    history: pd.DataFrame, title: str = "", monitored: pd.DataFrame | None = None
) -> Figure:
    """Draw the loss in nats and the share of correct answers, with those of the running mean.

    The test images are looked at once, so they give a single point.

    Args:
        history: of `keyfilters.training.Trained`, one row an epoch.
        title: what was trained on what.
        monitored: measurements of `keyfilters.Monitor`; where there are any with receptive fields,
            a third panel shows the share of filters explained beside that of null filters.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    sizes = [] if monitored is None else _sizes(monitored)
    figure = Figure(figsize=(11.0 if sizes else 7.6, 3.1), layout="constrained")
    axes: Any = figure.subplots(1, 3 if sizes else 2)
    curves = (
        (0, "train_loss", "training, as augmented", TRAINING),
        (0, "val_loss", "validation", VALIDATION),
        (0, "ema_val_loss", "validation, mean weights", MEAN),
        (0, "test_loss", "test", TEST),
        (1, "val_top1", "validation", VALIDATION),
        (1, "ema_val_top1", "validation, mean weights", MEAN),
        (1, "test_top1", "test", TEST),
    )
    for side, column, label, colour in curves:
        if column in history:
            scale = 100 if side else 1
            axes[side].plot(
                history["epoch"],
                scale * history[column],
                marker="o",
                ms=3,
                color=colour,
                label=label,
            )
    for one, what in zip(axes[:2], ("cross entropy, nats", "correct, %"), strict=True):
        one.set_xlabel("epoch", fontsize=9, color=MUTED)
        one.set_title(what, fontsize=10, loc="left")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.spines[["top", "right"]].set_visible(False)
        one.legend(frameon=False, fontsize=8)
    axes[0].set_ylim(bottom=0)
    if monitored is not None and sizes:
        _filters(axes[2], monitored, sizes)
    figure.suptitle(title, fontsize=10)
    return figure


def _sizes(monitored: pd.DataFrame) -> list[str]:
    """Return the kernel sizes, such as ``"5x5"``, of which the share explained was measured."""
    ends = "/explained"
    return [x.removeprefix("filters/").removesuffix(ends) for x in monitored if x.endswith(ends)]


def _filters(axes: Any, monitored: pd.DataFrame, sizes: list[str]) -> None:
    """Draw the share of filters explained, and of null filters, over the steps."""
    for size, colour in zip(sizes, cycle((TRAINING, VALIDATION, MEAN)), strict=False):
        for what, style in (("explained", "-"), ("chance", "--")):
            share = 100 * monitored[f"filters/{size}/{what}"]
            label = f"{size}{', chance' if what == 'chance' else ''}"
            axes.plot(monitored["step"], share, style, marker="o", ms=3, color=colour, label=label)
    axes.set_xlabel("step", fontsize=9, color=MUTED)
    axes.set_title("filters explained, %", fontsize=10, loc="left")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
