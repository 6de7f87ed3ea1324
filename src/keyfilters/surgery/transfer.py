"""Copying depthwise filters from one network to another, and the controls that give it meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from keyfilters import init
from keyfilters.bank import FilterBank, Layer
from keyfilters.depthwise import extent
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.nulls import null_filters
from keyfilters.receptive_fields.resize import RESIZES, crop_or_pad, nearest_layers, resize_filters
from keyfilters.surgery.initialize import layer_generator, resolve_seed
from keyfilters.surgery.targets import (
    Model,
    Target,
    all_targets,
    choose_targets,
    layer_table,
    write_all_,
)
from keyfilters.threads import one_thread_if_forked

__all__ = ["CONTROLS", "transfer_filters_"]

COLUMNS = ["source", "source_depth", "source_size", "source_filters", "how", "resampling"]
COLUMNS += ["cosine", "control"]


@one_thread_if_forked()
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

    A layer takes its filters from the source layer of the same name if both networks use the same
    names; else from that in the same place if both have equally many layers of the same channels
    and sizes in the same order; else from the one of its kernel size (or, if there is none, of any
    size) that is nearest in relative depth, the earlier of two.

    Other kernel sizes are handled as `resize` says. With more source filters than channels, some
    are drawn without replacement. With fewer, each is used equally often; the remainder is drawn at
    random. The filters keep the order of their channels.

    A control changes the filters that would have been written, but for the zeros of padding, in one
    respect only, so that transfer and control differ in nothing else:

    - ``"random"``: Gaussian taps, each filter with exactly its mean and root mean square.
    - ``"tap-shuffled"``: the taps of each filter permuted, each filter by itself.
    - ``"channel-shuffled"``: the filters of each layer permuted among the channels.
    - ``"impulse"``: one tap at a random place, each filter with its norm.
    - ``"covariance"``, ``"phase"``: null filters of each layer by itself (`keyfilters.nulls`):
      Gaussian of the layer's tap covariance, or each filter with its power spectrum and random
      phases; each with its mean and norm.

    Args:
        model: a module, or a state dict, plain or wrapped, whose tensors are overwritten.
        bank: the filters of one network.
        layers: names or patterns of those to overwrite; None takes all.
        control: one of the above; None transfers.
        resize: ``"auto"`` crops to a smaller kernel, about its centre, and pads to a larger one
            with zeros, so that every tap that remains is exact; ``"crop"``, ``"pad"`` and
            ``"render"`` render the filter's own idealised model instead of padding, cropping, or
            either.
        seed: of the channels drawn and of the control. Every layer has its own random stream, and
            the channels drawn do not depend on the control.
        generator: gives the seed instead.

    Returns:
        One row a layer: layer, size, depth, filters, source (layer), source_depth, source_size,
        source_filters (number), how (copied, cropped, padded, rendered), resampling (in order,
        sampled, repeated), cosine (mean over the filters, between source and resized filter, not
        centred, missing taps taken as 0; before any control), control, and left: why a layer was
        left alone.

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
    found = all_targets(model)
    targets, left = choose_targets(found, layers)
    source_of = _matching(found, bank.layers)

    def move(target: Target) -> tuple[Tensor, dict[str, object]]:
        return _move(target, source_of(target), control, resize, seed)

    moved = write_all_(targets, left, move, "nothing can be transferred")
    return layer_table(targets, left, moved, COLUMNS)


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


def _matching(found: Sequence[Target], sources: Sequence[Layer]) -> Callable[[Target], Layer]:
    """Return the function that tells which source layer each layer of the model gets."""
    own = {layer.name: layer for layer in sources}
    targets = [target for target in found if not target.left]
    names = [target.name for target in targets]
    if not set(names) <= own.keys() <= {target.name for target in found}:
        shapes = [(target.channels, target.size) for target in targets]
        alike = shapes == [(len(layer.weight), layer.size) for layer in sources]
        own = dict(zip(names, sources, strict=True)) if alike else {}

    def source_of(target: Target) -> Layer:
        if target.name in own:
            return own[target.name]
        same = [layer for layer in sources if layer.size == target.size]
        return nearest_layers(same or sources, target.depth)[0]

    return source_of


def _move(
    target: Target, source: Layer, control: str | None, resize: str, seed: int
) -> tuple[Tensor, dict[str, object]]:
    """Bring the filters of `source` to the size and channels of a layer; return the report too."""
    original = source.weight.astype(np.float64)
    if not np.isfinite(original).all():
        raise KeyFiltersError(f"its source, {source.name}, holds filters that are not finite")
    resized, how = resize_filters(original, target.size, resize)
    wanted, have = target.channels, len(original)
    order = _channels(have, wanted, layer_generator(seed, target.depth, "channels"))
    filters = torch.from_numpy(resized)[order]
    if control is not None:
        # Padding stays 0: a control on wider support would differ in more than its one respect.
        window = [min(pair) for pair in zip(source.size, target.size, strict=True)]
        support = target.size if how.startswith("rendered") else (window[0], window[1])
        taken = torch.from_numpy(crop_or_pad(filters.numpy(), support))
        changed = CONTROLS[control](taken, layer_generator(seed, target.depth, control))
        filters = torch.from_numpy(crop_or_pad(changed.numpy(), target.size))
    resampling = "in order" if have == wanted else "sampled" if have > wanted else "repeated"
    return filters, {
        "source": source.name,
        "source_depth": source.depth,
        "source_size": extent(source.size),
        "source_filters": have,
        "how": how,
        "resampling": resampling,
        "cosine": _cosine(original, resized),
        "control": control or "",
    }


def _channels(have: int, wanted: int, generator: Generator) -> Tensor:
    """Return the source channel of each channel, ``(wanted,)``, ascending."""
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


def _null(kind: str) -> Callable[[Tensor, Generator], Tensor]:
    def control(filters: Tensor, generator: Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        return torch.from_numpy(null_filters(filters.numpy(), kind, seed))

    return control


CONTROLS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "random": _random,
    "tap-shuffled": _tap_shuffled,
    "channel-shuffled": _channel_shuffled,
    "impulse": _impulse,
    "covariance": _null("covariance"),
    "phase": _null("phase"),
}
