"""Moving the amplitude of a depthwise filter into what comes behind it.

``a x + b`` and what follows compute the same as ``x + b / a`` and a follower scaled by a. So where
the graph allows it a model on keys needs one number a filter, b (babaiee2025quest).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.passes import evaluating, quiet, refuse_non_finite, run, undoing
from keyfilters.surgery.offers import offer_keys
from keyfilters.surgery.sites import find_sites
from keyfilters.surgery.traced import consumers

__all__ = ["fold_amplitudes_"]

SMALL = 1e-3  # of a layer's largest |a|: below it, dividing by a would blow up b


def fold_amplitudes_(
    model: nn.Module, keys: KeySet | list[KeySet], example: Tensor, *, tolerance: float = 1e-4
) -> pd.DataFrame:
    """Scale filters so that their amplitude is 1, and scale what follows to make up for it.

    A follower is the one module that takes the convolution's output and scales its channels
    linearly: a batch normalisation, or a pointwise or other ungrouped convolution. Nonlinear
    followers, several of them, and layer normalisation, which mixes channels, leave a layer as it
    is. In evaluation mode the model's output stays the same up to rounding.

    Args:
        model: whose filters lie on keys, as after `replace_filters_`; changed in place.
        keys: the key sets used there.
        example: images for one forward pass, which shows what follows what.
        tolerance: relative change of the output on `example` above which all is undone.

    Returns:
        One row a layer with keys: layer, filters, folded (how many) and into (what follows; or why
        nothing was folded).

    Raises:
        KeyFiltersError: the output changed by more than `tolerance`; the model is as before.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 4, 1))
    >>> fold_amplitudes_(net, KeySet.random(8, size=5), torch.ones(1, 8, 9, 9)).values.tolist()
    [['0', 8, 8, 'Conv2d']]
    """
    sites, left = find_sites(model)
    offered = offer_keys(sites, keys, left)
    refuse_non_finite(example)
    rows: list[dict[str, Any]] = []
    with evaluating(model), quiet(), undoing(model):
        before = run(model, example)
        behind = consumers(model, example[:1])
        for site in sites:
            offer = offered.get(site.name)
            if not isinstance(offer, KeySet) or site.conv is None:
                continue
            followers = behind.get(site.conv, [])
            into = followers[0] if len(followers) == 1 else None
            row = {"layer": site.name, "filters": len(site.weight), "folded": 0}
            if not _takes_scale(into) or site.kernel is None or not site.kernel.plain:
                rows.append(row | {"into": "left alone: nothing behind it only scales channels"})
                continue
            a = torch.as_tensor(offer.assign(site.filters).a).to(site.weight)
            fold = a.abs() > SMALL * a.abs().max()
            a = torch.where(fold, a, torch.ones_like(a))
            site.weight.div_(a[:, None, None, None])
            if site.conv.bias is not None:
                site.conv.bias.div_(a)
            assert into is not None
            _scale_input_(into, a)
            rows.append(row | {"folded": int(fold.sum()), "into": type(into).__name__})
        after = run(model, example)
        change = float((after - before).norm() / before.norm().clamp_min(1e-30))
        if not change <= tolerance:
            raise KeyFiltersError(
                f"folding changed the output by {change:.1e} of itself, more than {tolerance:g}; "
                "the model is as before. Does it use its weights elsewhere too?"
            )
    return pd.DataFrame(rows)


def _takes_scale(module: nn.Module | None) -> bool:
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None and module.affine
    return isinstance(module, nn.Conv2d) and module.groups == 1


def _scale_input_(module: nn.Module, a: Tensor) -> None:
    """Make a module do with inputs x what it did with a · x, channel by channel."""
    if isinstance(module, nn.Conv2d):
        module.weight.mul_(a[None, :, None, None])
        return
    assert isinstance(module, _BatchNorm)
    mean, var = module.running_mean, module.running_var
    assert mean is not None and var is not None
    spread = (var + module.eps).sqrt()
    mean.div_(a)
    var.div_(a**2)
    # Exact although eps does not scale with the variance.
    module.weight.mul_(a * (var + module.eps).sqrt() / spread)
