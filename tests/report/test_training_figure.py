from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keyfilters.report.training_figure import training_figure


def test_curves_show_what_the_history_holds() -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "train_loss": [2.0, 1.0],
            "val_loss": [2.5, 1.5],
            "val_top1": [0.2, 0.8],
            "test_top1": [np.nan, 0.7],
        }
    )
    left, right = training_figure(history, "a net").axes
    assert [line.get_label() for line in left.lines] == ["training, as augmented", "validation"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), [20, 80])
    np.testing.assert_allclose(right.lines[1].get_ydata(), [np.nan, 70])
    both = history.assign(ema_val_loss=1.0, ema_val_top1=0.5)
    assert [len(axes.lines) for axes in training_figure(both).axes] == [3, 3]


def test_monitored_filters_are_a_third_panel() -> None:
    history = pd.DataFrame({"epoch": [1], "train_loss": [2.0], "val_top1": [0.5]})
    measured = {"explained": [0.2, 0.6], "chance": [0.3, 0.1]}
    monitored = pd.DataFrame({"step": [0, 5], "filters/a/norm": [1, 1]})
    assert len(training_figure(history, "", monitored).axes) == 2
    monitored = monitored.assign(**{f"filters/5x5/{name}": x for name, x in measured.items()})
    [*_, panel] = training_figure(history, "", monitored).axes
    shown = [line.get_ydata().tolist() for line in panel.lines]
    assert shown == [pytest.approx([20, 60]), pytest.approx([30, 10])]
