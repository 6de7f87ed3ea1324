"""Initialising all depthwise filters of a model by one scheme."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from keyfilters import init
from keyfilters.bank import FilterBank
from keyfilters.depthwise import extent
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields import published_in
from keyfilters.receptive_fields.resize import Tables, idealized_near
from keyfilters.surgery.key_choice import sets_by_size
from keyfilters.surgery.targets import Model, Target, find_targets, layer_table, write_all_
from keyfilters.threads import one_thread

__all__ = ["SCHEMES", "initialize_filters_", "layer_generator", "resolve_seed"]


@one_thread()  # what divides sums changes their last digits, and a forked process must not wait
def initialize_filters_(
    model: Model,
    scheme: str = "center-surround",
    *,
    seed: int = 0,
    generator: Generator | None = None,
    layers: Sequence[str] | None = None,
    keys: KeySet | Sequence[KeySet] | None = None,
    bank: FilterBank | None = None,
    std: float | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Initialise the depthwise filters of a model, in place; biases and all else stay.

    Schemes, with their options and defaults:

    - ``"center-surround"`` (gammas=(1/3, 1/2, 2/3), share=1.0, on=0.5): differences of Gaussians
      (babaiee2024echos), for filters of at least 3 taps a side, or of a single row or column.
    - ``"keys"`` (keys, signs=True): a random key a channel (babaiee2025quest); where no keys are
      given, ``KeySet.published("lindeberg2026-B")`` at the size of each layer.
    - ``"idealized"`` (bank, scale_sigma=True): for each channel the idealised model of a filter
      drawn from a trained bank: family, scales and sign together, as `keyfilters.match` finds them,
      without the offset. It is drawn from the layers of the same kernel size, or where a bank has
      none from all, that are nearest in relative depth; of several models in the bank each lends
      its nearest. With `scale_sigma`, σ grows with the kernel where the sizes differ.
    - ``"covariance"`` (schedule=(0.15, 0.25, 1.0)): trockman2023covariance at the layer's depth.
    - ``"impulse"`` (scale=1.0): one tap at a random place.
    - ``"trunc-normal"``: truncated normal of standard deviation 0.02, or `std`.
    - ``"default"``: the convolution's own ``reset_parameters``: torch's Kaiming uniform with
      a = √5, unless its class has another. What the whole model would do is known only to the
      model: build it anew for that.
    - ``"kaiming"`` (mode="fan_out"): `torch.nn.init.kaiming_normal_`. Its fan_out counts the taps
      of all C filters, as if each input channel fed every output; type ``mode="fan_in"`` for
      ``sqrt(2 / (k_y k_x))``.

    Args:
        model: a module, or a state dict, plain or wrapped, whose tensors are overwritten.
        scheme: one of the above.
        seed: of all draws. Every layer has its own random stream, from the seed and its relative
            depth, so that `layers` does not change what a layer gets.
        generator: gives the seed instead.
        layers: names or patterns of those to initialise; None takes all.
        keys: for ``"keys"``: a key set, or several of different sizes.
        bank: for ``"idealized"``, of one or more trained models.
        std: None keeps the scheme's own scale. A number is the root mean square of every filter
            written (center-surround, keys, idealized, impulse), the standard deviation of the
            distribution (covariance, trunc-normal) or the root mean square of the layer (default,
            kaiming). ``"keep"`` takes the layer's present root mean square as that number, and all
            but center-surround with a share below 1 end in exactly that.
        **options: of the scheme.

    Returns:
        One row a layer: layer, size, depth, filters, scheme, rms_before and rms_after (over all
        taps of the layer), and left: why a layer was left alone.

    Raises:
        KeyFiltersError: unknown scheme or option, or no layer can be initialised so. The model is
            then unchanged.
        NoFiltersError: the model has no depthwise layer.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 7, groups=8))
    >>> initialize_filters_(net, std=0.02)[["layer", "size", "rms_after"]].round(4).values.tolist()
    [['0', '7×7', 0.02]]
    """
    given = {"keys": None if keys is None else sets_by_size(keys), "bank": bank}
    fill = _prepare(scheme, options | {k: v for k, v in given.items() if v is not None})
    if std not in (None, "keep") and (isinstance(std, str) or not 0 < std < math.inf):
        raise KeyFiltersError(f'std is {std!r}; type a number above 0, "keep" or None')
    seed = resolve_seed(seed, generator)
    targets, left = find_targets(model, layers)
    before = {target.name: _rms(torch.from_numpy(target.filters)) for target in targets}

    def draw(target: Target) -> tuple[Tensor, None]:
        present = before[target.name]
        if std == "keep" and not 0 < present < math.inf:
            raise KeyFiltersError(f"its root mean square is {present}, which cannot be kept")
        wanted = present if isinstance(std, str) else std
        drawn = fill(target, layer_generator(seed, target.depth, "initialize"), wanted)
        if std == "keep" and scheme != "center-surround":
            drawn *= present / _rms(drawn)
        return drawn, None

    done = write_all_(targets, left, draw, f"no layer can be initialised by {scheme!r}")
    rows = {
        target.name: {
            "scheme": scheme if target.name in done else "",
            "rms_before": before[target.name],
            "rms_after": _rms(torch.from_numpy(target.filters)),
        }
        for target in targets
    }
    return layer_table(targets, left, rows, ["scheme", "rms_before", "rms_after"])


def layer_generator(seed: int, depth: float, purpose: str) -> Generator:
    """Return a layer's own generator on the CPU, from a seed, its relative depth and a purpose."""
    text = f"{seed}/{round(depth * 1e9)}/{purpose}"
    digest = hashlib.sha256(text.encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def resolve_seed(seed: int, generator: Generator | None) -> int:
    """Return `seed`, or where there is a generator the next number drawn from it."""
    if generator is None:
        return seed
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _prepare(scheme: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    if scheme not in SCHEMES:
        tail = nearest(scheme, SCHEMES) or f"; there are: {', '.join(SCHEMES)}"
        raise KeyFiltersError(f"no initialisation is called {scheme!r}{tail}")
    accepted = list(inspect.signature(SCHEMES[scheme]).parameters)[3:]
    known = [name for name in accepted if name != "tables"] + ["std"]
    for option in options:
        if option not in known:
            raise KeyFiltersError(
                f"the initialisation {scheme!r} has no option {option!r}, only: {', '.join(known)}"
            )
    if "tables" in accepted:
        options["tables"] = {}  # what is found once for all layers
    return partial(SCHEMES[scheme], **options)


def _rms(filters: Tensor) -> float:
    return float(filters.square().mean().sqrt())


# The schemes: functions of a layer, its random generator, the standard deviation asked for (or
# None) and options, which return filters ``(C, k_y, k_x)`` in float64.

Std = float | None


def _center_surround(
    target: Target,
    generator: Generator,
    std: Std,
    gammas: Sequence[float] = init.GAMMAS,
    share: float = 1.0,
    on: float = 0.5,
) -> Tensor:
    present = torch.from_numpy(target.filters)
    return init.center_surround_(present, gammas, share, on, std, generator)


def _keys(
    target: Target,
    generator: Generator,
    std: Std,
    keys: Mapping[tuple[int, int], KeySet] | None = None,
    signs: bool = True,
) -> Tensor:
    if keys is None and published_in(target.size):
        keys = {target.size: KeySet.published("lindeberg2026-B", size=target.size)}
    if keys is None:
        raise KeyFiltersError(f"no published keys are {extent(target.size)}; type keys=")
    if target.size not in keys:
        have = ", ".join(map(extent, keys))
        raise KeyFiltersError(f"filters of {extent(target.size)}, the keys are {have}")
    return init.key_(_blank(target), keys[target.size].filters, std, signs, generator=generator)


def _idealized(
    target: Target,
    generator: Generator,
    std: Std,
    tables: Tables,
    bank: FilterBank | None = None,
    scale_sigma: bool = True,
) -> Tensor:
    if bank is None:
        raise KeyFiltersError('"idealized" follows a trained model; type bank=kf.read(...)')
    near = torch.from_numpy(
        idealized_near(bank.layers, target.depth, target.size, scale_sigma, tables)
    )
    chosen = near[torch.randint(len(near), (target.channels,), generator=generator)]
    rms = chosen.square().mean((1, 2), keepdim=True).sqrt()
    return chosen if std is None else chosen * (std / rms)


def _covariance(
    target: Target,
    generator: Generator,
    std: Std,
    schedule: tuple[float, float, float] = (0.15, 0.25, 1.0),
) -> Tensor:
    return init.covariance_(_blank(target), target.depth, schedule, std, generator)


def _impulse(target: Target, generator: Generator, std: Std, scale: float = 1.0) -> Tensor:
    height = scale if std is None else std * math.sqrt(math.prod(target.size))
    return init.impulse_(_blank(target), height, generator)


def _trunc_normal(target: Target, generator: Generator, std: Std) -> Tensor:
    return init.trunc_normal_(_blank(target), 0.02 if std is None else std, generator)


def _default(target: Target, generator: Generator, std: Std) -> Tensor:
    conv = target.conv
    if conv is None or type(conv).reset_parameters is nn.Conv2d.reset_parameters:  # Conv1d's too
        drawn = _blank(target)[:, None]
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            twin = copy.deepcopy(conv).cpu()
            twin.reset_parameters()
        drawn = twin.weight.detach().double()
    return _of_rms(drawn.reshape(target.channels, *target.size), std)


def _kaiming(target: Target, generator: Generator, std: Std, mode: str = "fan_out") -> Tensor:
    if mode not in ("fan_in", "fan_out"):
        raise KeyFiltersError(f'mode is {mode!r}; type "fan_in" or "fan_out"')
    drawn = _blank(target)[:, None]
    nn.init.kaiming_normal_(drawn, mode=mode, generator=generator)  # type: ignore[arg-type]
    return _of_rms(drawn[:, 0], std)


SCHEMES: dict[str, Callable[..., Tensor]] = {
    "center-surround": _center_surround,
    "keys": _keys,
    "idealized": _idealized,
    "covariance": _covariance,
    "impulse": _impulse,
    "trunc-normal": _trunc_normal,
    "default": _default,
    "kaiming": _kaiming,
}


def _blank(target: Target) -> Tensor:
    return torch.empty(target.channels, *target.size, dtype=torch.float64)


def _of_rms(filters: Tensor, std: Std) -> Tensor:
    return filters if std is None else filters * (std / filters.square().mean().sqrt())
