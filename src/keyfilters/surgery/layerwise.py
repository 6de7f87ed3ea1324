"""Replacing layer after layer through a network, each on what the layers before it now give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keyfilters.errors import KeyFiltersError
from keyfilters.input_covariance import (
    Settings,
    Statistics,
    choose,
    gather,
    original_outputs,
)
from keyfilters.keyset import KeySet
from keyfilters.passes import copied, evaluating, quiet, undoing, unwrapped
from keyfilters.surgery.key_choice import Choice
from keyfilters.surgery.recalibrate import recalibrate_batchnorm_
from keyfilters.surgery.targets import Target
from keyfilters.tracing import consumers, steps

__all__ = ["Replaced", "replace_layerwise_"]


@dataclass(frozen=True, eq=False)
class Replaced:
    """New filters of a layer.

    Attributes:
        filters: ``(C, k_y, k_x)``.
        index: ``(C,)`` which key each is made of.
        output_error: median over channels of the share of the output's variance that changes.
    """

    filters: NDArray[np.float64]
    index: NDArray[np.int64]
    output_error: float = np.nan


def replace_layerwise_(
    model: nn.Module,
    targets: Sequence[Target],
    choices: Mapping[str, Choice],
    settings: Settings,
    recalibrate: bool,
    progress: Callable[[str], None] | None,
) -> dict[str, Replaced]:
    """Replace layers in place, in the order given, by what changes their outputs least.

    `recalibrate`: whether to correct the batch normalisations when all is done.
    """
    root = unwrapped(model)
    original = copied(root)
    found: dict[str, Replaced] = {}
    with evaluating(root, original), quiet(), undoing(root):
        behind = consumers(steps(root, settings.images[:1]))
        twins = dict(zip(root.modules(), original.modules(), strict=True))
        convs = {x.name: twins[x.conv] for x in targets if x.conv is not None}
        outputs = original_outputs(original, convs, settings)
        for target in targets:
            if target.name not in outputs:
                raise KeyFiltersError(
                    f"layer {target.name} takes no part in the forward pass; name those to replace "
                    "with layers="
                )
        for target in targets:
            if progress is not None:
                progress(target.name)
            assert target.conv is not None
            statistics = gather(root, target.conv, outputs[target.name], settings)
            tensor, sign = _mean_of_output(target.conv, behind.get(target.conv, []))
            if tensor is None:
                statistics = statistics.about_zero()
            new = _choose(target.filters, choices[target.name], statistics, settings.ridge)
            target.write_(new.filters)
            found[target.name] = new
            if tensor is not None:
                filters = torch.as_tensor(new.filters).to(statistics.mean).flatten(1)
                lost = statistics.output_mean - (filters * statistics.mean).sum(1)
                tensor.add_(sign * lost.to(tensor))
        if recalibrate:
            recalibrate_batchnorm_(root, original, settings.images, batch_size=settings.batch_size)
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise KeyFiltersError(
                    f"{name} would not be finite in {tensor.dtype} with these images; type "
                    "model.float() first, or give others"
                )
    return found


def _choose(
    filters: NDArray[np.float64], choice: Choice, statistics: Statistics, ridge: float
) -> Replaced:
    keys = choice.filters[None] if isinstance(choice, KeySet) else choice[:, None]
    index, a, b = choose(filters, keys, statistics, ridge)
    shape = keys[0, index] if isinstance(choice, KeySet) else choice
    new = a[:, None, None] * shape + b[:, None, None]
    changed = statistics.error(torch.as_tensor(new).to(statistics.mean).flatten(1))
    share = (changed / statistics.output_variance.clamp_min(1e-30)).cpu().numpy()
    alive = (statistics.output_variance > 0).cpu().numpy()
    used = index if isinstance(choice, KeySet) else np.arange(len(filters))
    return Replaced(new, used, float(np.median(share[alive])) if alive.any() else np.nan)


def _mean_of_output(
    conv: nn.Conv1d | nn.Conv2d, behind: Sequence[nn.Module | None]
) -> tuple[Tensor | None, int]:
    """Return what moves each channel's output by a constant, and its sign; None if nothing does.

    It is the convolution's own bias, or the mean of the one batch normalisation behind it.
    """
    if conv.bias is not None:
        return conv.bias.data, 1
    if len(set(behind)) == 1 and isinstance(norm := behind[0], _BatchNorm):
        return norm.running_mean, -1
    return None, 1
