"""Replacing every depthwise filter by its best ``a · key + b``, or by its own idealised model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.input_covariance import Settings
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_bank
from keyfilters.surgery.key_choice import FAILURE, Choice, Keys, choose_keys, explained_share
from keyfilters.surgery.layerwise import Replaced, replace_layerwise_
from keyfilters.surgery.targets import (
    Model,
    Target,
    find_targets,
    layer_table,
    refuse_programs,
    write_all_,
)
from keyfilters.threads import one_thread_if_forked

__all__ = ["replace_filters_", "replace_targets_"]

COLUMNS = ["keys", "used", "explained", "chance", "cosine", "error", "output_error"]
Filters = NDArray[np.float64]
Progress = Callable[[str], None] | None
Replace = Callable[[Sequence[Target], Mapping[str, Choice]], dict[str, Replaced]]


@one_thread_if_forked()
def replace_filters_(
    model: Model,
    keys: Keys,
    *,
    layers: Sequence[str] | None = None,
    images: Tensor | None = None,
    recalibrate: bool = True,
    ridge: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = None,
) -> pd.DataFrame:
    """Replace the depthwise filters of a model, in place, by ``a · key + b``.

    Without images, key, a and b are those nearest to the filter (lindeberg2026modelling,
    babaiee2025quest): ``a = ⟨x, f⟩`` of the key with the largest ``|a|``, b = mean f. With images,
    unlabelled, they are those that change the layer's *output* least, on the inputs that it gets
    from the layers replaced before it; the outputs' means are kept through the bias or the batch
    normalisation that follows, and in the end all batch normalisations are recalibrated.

    Args:
        model: a module, or a state dict, plain or wrapped, whose tensors are overwritten. Images
            need a module.
        keys: a key set; several of different sizes; one for each layer, by name; or
            ``"idealized"``, every filter's own model as found by `keyfilters.match`.
        layers: names or patterns of those to replace; None replaces all that have keys.
        images: ``(n, channels, height, width)``, normalised as the model expects, on its device;
            signals ``(n, channels, length)`` of a network of one dimension.
        recalibrate: whether to correct the batch normalisations; needs images.
        ridge: weight of the filter's own error beside that of the output. 0 trusts the images
            alone, and overfits where they are few.
        batch_size: images at a time.
        seed: chooses the output positions that are looked at.
        progress: called with the name of every layer before it is replaced.

    Returns:
        One row a depthwise layer: layer, size, depth, filters, keys (number to choose from), used
        (number chosen), explained (share of the filters' variance over the taps), chance (the same
        share of Gaussian filters with the tap covariance of all replaced filters of that size, by
        the nearest of the same keys), cosine (median over the filters, centred), error (relative,
        Frobenius), output_error (with images: share of the output's variance that changes, median
        over channels), and left: why a layer was left alone.

    Raises:
        KeyFiltersError: nothing would be replaced, keys, layers or images do not fit, or a filter
            is not finite. The model is then unchanged.
        NoFiltersError: the model has no depthwise layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    >>> report = replace_filters_(net, KeySet.published("lindeberg2026-B"))
    >>> report[["layer", "size", "filters", "keys"]].values.tolist()
    [['0', '7×7', 8, 8]]
    """
    targets, left = find_targets(model, layers)
    if images is None:
        return replace_targets_(targets, left, keys, progress)
    if not isinstance(model, nn.Module):
        raise KeyFiltersError("images need the model itself, not its state dict")
    refuse_programs(targets)
    if images.ndim == 3 and any(target.ndim == 2 for target in targets):
        raise KeyFiltersError(
            "expected images of shape (n, channels, height, width), got "
            f"{tuple(images.shape)}; only networks of one dimension take signals"
        )
    settings = Settings(images, ridge=ridge, batch_size=batch_size, seed=seed)

    def replace_(targets: Sequence[Target], choices: Mapping[str, Choice]) -> dict[str, Replaced]:
        return replace_layerwise_(model, targets, choices, settings, recalibrate, progress)

    return replace_targets_(targets, left, keys, progress, replace_)


def replace_targets_(
    targets: Sequence[Target],
    left: list[Target],
    keys: Keys,
    progress: Progress = None,
    replace_: Replace | None = None,
) -> pd.DataFrame:
    """Replace the filters of some layers, wherever they are kept; see `replace_filters_`.

    `replace_` chooses and writes the filters; by default the nearest ones. `left` is added to.
    """
    before = {target.name: target.finite_filters() for target in targets}
    choices = choose_keys(targets, keys, left)
    fitting = [target for target in targets if target.name in choices]

    def nearest(target: Target) -> tuple[Filters, Replaced]:
        found = _nearest(before[target.name], choices[target.name])
        return found.filters, found

    if replace_ is not None:
        found = replace_(fitting, choices)
    else:
        found = write_all_(fitting, left, nearest, FAILURE, progress)
    null = _null_filters({name: before[name] for name in found})
    rows = {
        name: _compare(before[name], choices[name], new, null[name]) for name, new in found.items()
    }
    return layer_table(targets, left, rows, COLUMNS)


def _nearest(filters: Filters, choice: Choice) -> Replaced:
    """Return the best a · x + b of every filter."""
    if isinstance(choice, KeySet):
        index, a, b, _ = choice.assign(filters)
        return Replaced(choice.reconstruct(index, a, b), index)
    a = (choice * filters).sum((1, 2), keepdims=True)
    new = a * choice + filters.mean((1, 2), keepdims=True)
    return Replaced(new, np.arange(len(filters)))


def _null_filters(before: Mapping[str, Filters]) -> dict[str, Filters]:
    """As many filters of every layer with the norms, means and tap covariance of its size."""
    layers = [
        Layer("", name, filters.astype(np.float32), None, None, 0.0)
        for name, filters in before.items()
    ]
    null = null_bank(FilterBank(layers), "covariance").layers
    return {layer.name: layer.weight.astype(np.float64) for layer in null}


def _compare(before: Filters, choice: Choice, after: Replaced, null: Filters) -> dict[str, Any]:
    """Return the part of the report on one layer."""
    old, new = before.reshape(len(before), -1), after.filters.reshape(len(before), -1)
    centred, now = (x - x.mean(1, keepdims=True) for x in (old, new))
    norms = np.linalg.norm(centred, axis=1) * np.linalg.norm(now, axis=1)
    cosine = np.abs((centred * now).sum(1))[norms > 0] / norms[norms > 0]
    comparable = isinstance(choice, KeySet) and centred.any()  # models of their own fit no others
    return {
        "keys": len(choice),
        "used": len(np.unique(after.index)),
        "explained": explained_share(before, after.filters),
        "chance": explained_share(null, _nearest(null, choice).filters) if comparable else np.nan,
        "cosine": float(np.median(cosine)) if len(cosine) else np.nan,
        "error": float(np.linalg.norm(new - old)) / max(float(np.linalg.norm(old)), 1e-30),
        "output_error": after.output_error,
    }
