"""How much each layer's replacement alone changes the answers of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from torch import Tensor, nn

from keyfilters.keyset import KeySet
from keyfilters.passes import undoing
from keyfilters.surgery.key_choice import Keys, choose_keys
from keyfilters.surgery.replace import replace_filters_
from keyfilters.surgery.targets import find_targets
from keyfilters.threads import one_thread_if_forked
from keyfilters.training.evaluate import agreement, logits

__all__ = ["layer_sensitivity"]


@one_thread_if_forked()
def layer_sensitivity(
    model: nn.Module,
    keys: Keys,
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Replace one layer at a time and measure how the model's answers change.

    The layer is put back before the next one is tried, so the model is unchanged in the end.

    Args:
        model: on `device`.
        keys: as for `replace_filters_`.
        images: ``(n, channels, height, width)`` unlabelled, on which answers are compared.
        layers: names or patterns; None tries all.
        device: where to compute.
        batch_size: images at a time.
        progress: called with the name of every layer.
        options: further arguments of `replace_filters_`.

    Returns:
        One row a layer that can be replaced: the columns of `replace_filters_`, and top1
        (agreement), low, high (its 95 % interval), kl (nats) and logit_error, see `Agreement`.

    Raises:
        KeyFiltersError: as `replace_filters_`.
    """
    targets, left = find_targets(model, layers)
    choices = choose_keys(targets, keys, left)
    reference = logits(model, images, device, batch_size=batch_size)
    rows = []
    for name, choice in choices.items():
        if progress is not None:
            progress(name)
        one: Keys = {name: choice} if isinstance(choice, KeySet) else "idealized"
        with undoing(model, always=True):
            report = replace_filters_(model, one, layers=[name], **options)
            found = agreement(model, reference, images, device=device, batch_size=batch_size)
        row = report[report["layer"] == name].iloc[0].to_dict()
        low, high = found.interval
        row |= {"top1": found.top1, "low": low, "high": high}
        rows.append(row | {"kl": found.kl, "logit_error": found.logit_error})
    return pd.DataFrame(rows)
