"""Replacing layer after layer through a network, each on what the layers before it now give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keyfilters.depthwise import unwrapped
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.passes import copied, evaluating, quiet, undoing
from keyfilters.surgery.offers import Offer
from keyfilters.surgery.outputs import Settings, Statistics, choose, gather, original_outputs
from keyfilters.surgery.recalibrate import recalibrate_batchnorm_
from keyfilters.surgery.sites import Site, find_sites
from keyfilters.surgery.traced import consumers

__all__ = ["Chosen", "choose_by_outputs_"]


@dataclass(frozen=True, eq=False)
class Chosen:
    """New filters of a layer.

    Attributes:
        filters: ``(C, k_y, k_x)``.
        index: ``(C,)`` which key each is made of.
        output_error: median over channels of the share of the output's variance that changes.
    """

    filters: NDArray[np.float64]
    index: NDArray[np.int64]
    output_error: float = np.nan


def choose_by_outputs_(
    model: nn.Module,
    layers: Sequence[tuple[Site, Offer]],
    settings: Settings,
    recalibrate: bool,
    progress: Callable[[str], None] | None,
) -> dict[str, Chosen]:
    """Replace layers in place, in the order given, by what changes their outputs least.

    Args:
        model: the network.
        layers: layers of it with what they may be made of.
        settings: images and how to use them.
        recalibrate: whether to correct the batch normalisations when all is done.
        progress: called with the name of every layer.
    """
    root = unwrapped(model)
    original = copied(root)
    found: dict[str, Chosen] = {}
    with evaluating(root, original), quiet(), undoing(root):
        behind = consumers(root, settings.images[:1])
        twins = {site.name: site.conv for site in find_sites(original)[0]}
        convs = {site.name: twins[site.name] for site, _ in layers}
        known = {name: conv for name, conv in convs.items() if conv is not None}
        outputs = original_outputs(original, known, settings)
        for site, _ in layers:
            if site.name not in outputs:
                raise KeyFiltersError(
                    f"layer {site.name} takes no part in the forward pass; name those to replace "
                    "with layers="
                )
        for site, offer in layers:
            if progress is not None:
                progress(site.name)
            assert site.conv is not None
            statistics = gather(root, site.conv, outputs[site.name], settings)
            shift = _mean_keeper(site.conv, behind.get(site.conv, []))
            if shift is None:
                statistics = statistics.about_zero()
            chosen = _choose(site.filters, offer, statistics, settings.ridge)
            site.write_(chosen.filters)
            found[site.name] = chosen
            if shift is not None:
                filters = torch.as_tensor(chosen.filters).to(statistics.mean).flatten(1)
                shift(statistics.output_mean - (filters * statistics.mean).sum(1))
        if recalibrate:
            recalibrate_batchnorm_(root, original, settings.images, batch_size=settings.batch_size)
        for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise KeyFiltersError(
                    f"{name} would not be finite; {tensor.dtype} or these images do not serve"
                )
    return found


def _choose(
    filters: NDArray[np.float64], offer: Offer, statistics: Statistics, ridge: float
) -> Chosen:
    shapes = offer.filters[None] if isinstance(offer, KeySet) else offer[:, None]
    index, a, b = choose(filters, shapes, statistics, ridge)
    rows = np.arange(len(filters))
    shape = shapes[0, index] if isinstance(offer, KeySet) else offer
    new = a[:, None, None] * shape + b[:, None, None]
    changed = statistics.error(torch.as_tensor(new).to(statistics.mean).flatten(1))
    share = (changed / statistics.output_variance.clamp_min(1e-30)).cpu().numpy()
    alive = (statistics.output_variance > 0).cpu().numpy()
    return Chosen(
        new,
        index if isinstance(offer, KeySet) else rows,
        float(np.median(share[alive])) if alive.any() else np.nan,
    )


def _mean_keeper(
    conv: nn.Conv2d, behind: Sequence[nn.Module | None]
) -> Callable[[Tensor], None] | None:
    """Return what adds a constant to each channel of a convolution's output; None if nothing can.

    It is the convolution's own bias, or the mean of the one batch normalisation behind it.
    """
    tensor, sign = None, 1
    if conv.bias is not None:
        tensor = conv.bias.data
    elif len(set(behind)) == 1 and isinstance(norm := behind[0], _BatchNorm):
        tensor, sign = norm.running_mean, -1
    if tensor is None:
        return None
    kept = tensor

    def add(amount: Tensor) -> None:
        kept.add_(sign * amount.to(kept))

    return add
