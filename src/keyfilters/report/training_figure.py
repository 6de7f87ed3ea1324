"""How a training run went, in one picture: loss and accuracy over the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyfilters.report.drawing import MUTED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["training_figure"]

TRAINING, VALIDATION, MEAN, TEST = "#2f66b0", "#c44536", "#e0a021", "#222222"


def training_figure(history: pd.DataFrame, title: str = "") -> Figure:
    """Draw the loss in nats and the share of correct answers, with those of the running mean.

    The test images are looked at once, so they give a single point.

    Args:
        history: of `keyfilters.training.Trained`, one row an epoch.
        title: what was trained on what.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 3.1), layout="constrained")
    axes: Any = figure.subplots(1, 2)
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
    for one, what in zip(axes, ("cross entropy, nats", "correct, %"), strict=True):
        one.set_xlabel("epoch", fontsize=9, color=MUTED)
        one.set_title(what, fontsize=10, loc="left")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.spines[["top", "right"]].set_visible(False)
        one.legend(frameon=False, fontsize=8)
    axes[0].set_ylim(bottom=0)
    figure.suptitle(title, fontsize=10)
    return figure
