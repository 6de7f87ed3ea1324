"""Copying depthwise filters from one network to another, and the controls that give it meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from keyfilters import init
from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.surgery.initialize import layer_generator, left_alone, resolve_seed
from keyfilters.surgery.resize import RESIZES, crop_or_pad, nearest_layers, resize_filters
from keyfilters.surgery.sites import NOT_ASKED, Model, Site, find_sites

__all__ = ["CONTROLS", "transfer_filters_"]

COLUMNS = ["layer", "depth", "source", "source_depth", "source_size", "size", "how"]
COLUMNS += ["source_channels", "channels", "resampling", "cosine", "control", "note"]


def transfer_filters_(
    model: Model,
    bank: FilterBank,
    *,
    layers: Sequence[str] | None = None,
    control: str | None = None,
    resize: str = "auto",
    seed: int = 0,
    generator: Generator | None = None,
) -> pd.DataFrame:
    """Copy the depthwise filters of a bank into a model, in place (babaiee2025masterkey).

    Which source layer a layer gets: if both networks name their layers alike, that of its own name;
    else if both have as many layers of the same channels and sizes in the same order, that of its
    own place; else the one of its own kernel size that is nearest in relative depth, or if none has
    this size the nearest of all. Of two as near it is the earlier one.

    Other sizes are met as `resize` says, other numbers of channels so: of more source filters than
    needed some are drawn without replacement; of fewer, each is used equally often, up to one, and
    which are used once more is drawn. The filters keep the order of their channels.

    The controls change the filters that would have been written, after all that and but for the
    zeros of padding, in one respect only, so that transfer and control differ in nothing else:

    - ``"random"``: Gaussian taps, each filter with exactly its mean and root mean square.
    - ``"tap-shuffled"``: the taps of each filter permuted, each filter by itself.
    - ``"channel-shuffled"``: the filters of each layer permuted among the channels.
    - ``"impulse"``: one tap at a random place, each filter with its norm.

    Args:
        model: a module, or a state dict, plain or wrapped, whose tensors are overwritten.
        bank: the filters of one network.
        layers: names or patterns of those to overwrite; None takes all.
        control: one of the above; None transfers.
        resize: ``"auto"`` crops to a smaller kernel, about its centre, and pads to a larger one
            with zeros, so that what remains is exact; ``"crop"``, ``"pad"`` and ``"render"`` draw
            from the filter's own idealised model what would have to be padded, cropped, or either.
        seed: of the channels drawn and of the control. Every layer draws for itself, and the
            channels drawn do not depend on the control.
        generator: gives the seed instead.

    Returns:
        One row a layer: layer and its depth, source (layer) and its depth and size, size, how
        (copied, cropped, padded, rendered), source_channels, channels, resampling (in order,
        sampled, repeated), cosine (mean over the filters, between source and resized filter, not
        centred, missing taps taken as 0; before any control), control, and note: for example why a
        layer was left alone.

    Raises:
        KeyFiltersError: several models in the bank, unknown control or resize, or nothing can be
            transferred. The model is then unchanged.
        NoFiltersError: the model or the bank has no depthwise layer.

    >>> from keyfilters.sources import read
    >>> small, large = (torch.nn.Conv2d(c, c, k, groups=c) for c, k in ((8, 3), (16, 5)))
    >>> report = transfer_filters_(torch.nn.Sequential(large), read(small))
    >>> report[["source_size", "size", "how", "resampling"]].values.tolist()
    [['3×3', '5×5', 'padded', 'repeated']]
    """
    _check(bank, control, resize)
    seed = resolve_seed(seed, generator)
    sites, left = find_sites(model, layers)
    reasons = {name: why for name, why in left.items() if why != NOT_ASKED}
    source_of = _matching(*find_sites(model), bank.layers)
    moved: dict[str, _Moved] = {}
    writes: dict[str, Callable[[], None]] = {}
    for site in sites:  # all are made before the first is written
        try:
            made = _move(site, source_of(site), control, resize, seed)
            writes[site.name] = site.prepare(made.filters)
            moved[site.name] = made
        except KeyFiltersError as error:
            reasons[site.name] = str(error)
    if not moved:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise KeyFiltersError(f"nothing can be transferred: {why}")
    rows = []
    for site in sites:
        row = {"layer": site.name, "depth": site.depth, "size": _size(site.size)}
        row |= {"channels": len(site.weight), "control": control or ""}
        if site.name in moved:
            writes[site.name]()
            row |= moved[site.name].report
        rows.append(row | {"note": left_alone(reasons.pop(site.name, ""))})
    rows += [{"layer": name, "note": left_alone(why)} for name, why in reasons.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True, eq=False)
class _Moved:
    """Filters ready to be written, ``(C, k_y, k_x)``, and their part of the report."""

    filters: Tensor
    report: dict[str, object]


def _check(bank: FilterBank, control: str | None, resize: str) -> None:
    if not isinstance(bank, FilterBank):
        raise KeyFiltersError(f"bank is a {type(bank).__name__}; type bank=kf.read(...)")
    if not bank.layers:
        raise NoFiltersError("the bank holds no depthwise layer, so there is nothing to transfer")
    if len(bank.models) > 1:
        raise KeyFiltersError(
            f"the bank holds {len(bank.models)} models: {', '.join(bank.models)}; choose one: "
            f"kf.FilterBank(x for x in bank.layers if x.model == {bank.models[0]!r})"
        )
    if control is not None and control not in CONTROLS:
        tail = nearest(control, CONTROLS) or f"; there are: {', '.join(CONTROLS)}"
        raise KeyFiltersError(f"no control is called {control!r}{tail}")
    if resize not in RESIZES:
        raise KeyFiltersError(f"resize is {resize!r}; type one of: {', '.join(RESIZES)}")


def _matching(
    sites: Sequence[Site], left: dict[str, str], sources: Sequence[Layer]
) -> Callable[[Site], Layer]:
    """Say which source layer each layer of the whole model gets."""
    own = {layer.name: layer for layer in sources}
    names = [site.name for site in sites]
    if not set(names) <= own.keys() <= set(names) | left.keys():
        shapes = [(len(site.weight), site.size) for site in sites]
        alike = shapes == [(len(layer.weight), layer.size) for layer in sources]
        own = dict(zip(names, sources, strict=True)) if alike else {}

    def source_of(site: Site) -> Layer:
        if site.name in own:
            return own[site.name]
        same = [layer for layer in sources if layer.size == site.size]
        return nearest_layers(same or sources, site.depth)[0]

    return source_of


def _move(site: Site, source: Layer, control: str | None, resize: str, seed: int) -> _Moved:
    """Bring the filters of `source` to the size and channels of `site`."""
    original = source.weight.astype(np.float64)
    if not np.isfinite(original).all():
        raise KeyFiltersError(f"its source, {source.name}, holds filters that are not finite")
    resized, how = resize_filters(original, site.size, resize)
    wanted, have = len(site.weight), len(original)
    order = _channels(have, wanted, layer_generator(seed, site.depth, "channels"))
    filters = torch.from_numpy(resized)[order]
    if control is not None:
        # Padding stays 0: a control on wider support would differ in more than its one respect.
        window = [min(pair) for pair in zip(source.size, site.size, strict=True)]
        support = site.size if how.startswith("rendered") else (window[0], window[1])
        taken = torch.from_numpy(crop_or_pad(filters.numpy(), support))
        changed = CONTROLS[control](taken, layer_generator(seed, site.depth, control))
        filters = torch.from_numpy(crop_or_pad(changed.numpy(), site.size))
    resampling = "in order" if have == wanted else "sampled" if have > wanted else "repeated"
    report = {
        "source": source.name,
        "source_depth": source.depth,
        "source_size": _size(source.size),
        "how": how,
        "source_channels": have,
        "resampling": resampling,
        "cosine": _cosine(original, resized),
    }
    return _Moved(filters, report)


def _channels(have: int, wanted: int, generator: Generator) -> Tensor:
    """Source channel of each channel, ``(wanted,)``, ascending, each equally often up to one."""
    rest = torch.randperm(have, generator=generator)[: wanted % have]
    return torch.cat([torch.arange(have).repeat(wanted // have), rest]).sort().values


def _cosine(original: NDArray[np.float64], resized: NDArray[np.float64]) -> float:
    """Mean cosine of the filters before and after, in a window that holds both."""
    heights, widths = zip(original.shape[1:], resized.shape[1:], strict=True)
    window = (max(heights), max(widths))
    old, new = (crop_or_pad(x, window).reshape(len(x), -1) for x in (original, resized))
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosine = (old * new).sum(1)[norms > 0] / norms[norms > 0]
    return float(cosine.mean()) if len(cosine) else math.nan


def _random(filters: Tensor, generator: Generator) -> Tensor:
    mean, square = filters.mean((1, 2), True), filters.square().mean((1, 2), True)
    drawn = torch.randn(filters.shape, dtype=filters.dtype, generator=generator)
    drawn -= drawn.mean((1, 2), True)
    drawn /= drawn.square().mean((1, 2), True).sqrt()
    return mean + drawn * (square - mean**2).clamp(min=0).sqrt()


def _tap_shuffled(filters: Tensor, generator: Generator) -> Tensor:
    flat = filters.flatten(1)
    order = torch.rand(flat.shape, dtype=torch.float64, generator=generator).argsort(1)
    return flat.gather(1, order).reshape(filters.shape)


def _channel_shuffled(filters: Tensor, generator: Generator) -> Tensor:
    return filters[torch.randperm(len(filters), generator=generator)]


def _impulse(filters: Tensor, generator: Generator) -> Tensor:
    norm = filters.square().sum((1, 2), True).sqrt()
    return init.impulse_(torch.empty_like(filters), generator=generator) * norm


CONTROLS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "random": _random,
    "tap-shuffled": _tap_shuffled,
    "channel-shuffled": _channel_shuffled,
    "impulse": _impulse,
}


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
