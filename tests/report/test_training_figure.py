from __future__ import annotations

import numpy as np
import pandas as pd

from keyfilters.report.training_figure import training_figure


def test_curves_show_what_the_history_holds() -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2],
            "train_loss": [2.0, 1.0],
            "test_loss": [2.5, 1.5],
            "test_top1": [0.2, 0.8],
        }
    )
    left, right = training_figure(history, "a net").axes
    assert [line.get_label() for line in left.lines] == ["training, as augmented", "test"]
    np.testing.assert_allclose(right.lines[0].get_ydata(), [20, 80])
    both = history.assign(ema_loss=1.0, ema_top1=0.5)
    assert [len(axes.lines) for axes in training_figure(both).axes] == [3, 2]
