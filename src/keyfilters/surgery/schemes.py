"""The schemes of `initialize_filters_`, by name: functions that fill one depthwise layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from keyfilters import init
from keyfilters.bank import FilterBank
from keyfilters.depthwise import extent
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery.resize import idealized_near
from keyfilters.surgery.targets import Target

__all__ = ["SCHEMES", "Fill"]

# (layer, its random generator, std) -> filters (C, k_y, k_x)
Fill = Callable[[Target, Generator, float | None], Tensor]


def _center_surround(
    gammas: Sequence[float] = (1 / 3, 1 / 2, 2 / 3), share: float = 1.0, on: float = 0.5
) -> Fill:
    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        present = torch.from_numpy(target.filters)
        return init.center_surround_(present, gammas, share, on, std, generator)

    return fill


def _keys(keys: KeySet | None = None, signs: bool = True) -> Fill:
    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        height, width = target.size
        if keys is None and (height != width or height < 3 or height % 2 == 0):
            raise KeyFiltersError(
                f"the published keys have no {extent(target.size)} form; type keys="
            )
        drawn = KeySet.published("lindeberg2026-B", size=height) if keys is None else keys
        return init.key_(_blank(target), drawn.filters, std, signs, generator=generator)

    return fill


def _idealized(bank: FilterBank | None = None, scale_sigma: bool = True) -> Fill:
    if bank is None:
        raise KeyFiltersError('"idealized" follows a trained model; type bank=kf.read(...)')
    usable = [x for x in bank.layers if min(x.size) >= 3 and x.size[0] % 2 and x.size[1] % 2]
    if not usable:
        raise KeyFiltersError(
            "no layer of the bank has an odd kernel of at least 3×3, as models need"
        )
    tables: dict[int, pd.DataFrame] = {}

    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        near = idealized_near(usable, target.depth, target.size, scale_sigma, tables)
        if not len(near):
            raise KeyFiltersError("no model of the nearest filters can be seen in this window")
        picked = torch.randint(len(near), (target.channels,), generator=generator)
        chosen = torch.from_numpy(near)[picked]
        rms = chosen.square().mean((1, 2), keepdim=True).sqrt()
        return chosen if std is None else chosen * (std / rms)

    return fill


def _covariance(schedule: tuple[float, float, float] = (0.15, 0.25, 1.0)) -> Fill:
    return lambda target, generator, std: init.covariance_(
        _blank(target), target.depth, schedule, std, generator
    )


def _impulse(scale: float = 1.0) -> Fill:
    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        height = scale if std is None else std * math.sqrt(math.prod(target.size))
        return init.impulse_(_blank(target), height, generator)

    return fill


def _trunc_normal() -> Fill:
    return lambda target, generator, std: init.trunc_normal_(
        _blank(target), 0.02 if std is None else std, generator
    )


def _default() -> Fill:
    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        own = type(target.conv).reset_parameters if target.conv is not None else None
        if target.conv is None or own is nn.Conv2d.reset_parameters:
            drawn = _blank(target)[:, None]
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator.initial_seed())
                twin = copy.deepcopy(target.conv).cpu()
                twin.reset_parameters()
            drawn = twin.weight.detach().double()
        return _of_rms(drawn[:, 0], std)

    return fill


def _kaiming(mode: str = "fan_out") -> Fill:
    if mode not in ("fan_in", "fan_out"):
        raise KeyFiltersError(f'mode is {mode!r}; type "fan_in" or "fan_out"')

    def fill(target: Target, generator: Generator, std: float | None) -> Tensor:
        drawn = _blank(target)[:, None]
        nn.init.kaiming_normal_(drawn, mode=mode, generator=generator)  # type: ignore[arg-type]
        return _of_rms(drawn[:, 0], std)

    return fill


SCHEMES: dict[str, Callable[..., Fill]] = {
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


def _of_rms(filters: Tensor, std: float | None) -> Tensor:
    return filters if std is None else filters * (std / filters.square().mean().sqrt())
