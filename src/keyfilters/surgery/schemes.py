"""The schemes of `initialize_filters_`, by name: functions that draw one layer's filters.

Each takes the layer, its random generator, the standard deviation asked for (or None) and options,
and returns ``(C, k_y, k_x)`` filters in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from keyfilters import init
from keyfilters.bank import FilterBank
from keyfilters.depthwise import extent
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery.resize import Tables, idealized_near
from keyfilters.surgery.targets import Target

__all__ = ["SCHEMES"]

Std = float | None


def _center_surround(
    target: Target,
    generator: Generator,
    std: Std,
    gammas: Sequence[float] = (1 / 3, 1 / 2, 2 / 3),
    share: float = 1.0,
    on: float = 0.5,
) -> Tensor:
    present = torch.from_numpy(target.filters)
    return init.center_surround_(present, gammas, share, on, std, generator)


def _keys(
    target: Target,
    generator: Generator,
    std: Std,
    keys: KeySet | None = None,
    signs: bool = True,
) -> Tensor:
    height, width = target.size
    if keys is None:
        if height != width or height < 3 or height % 2 == 0:
            raise KeyFiltersError(f"no published keys are {extent(target.size)}; type keys=")
        keys = KeySet.published("lindeberg2026-B", size=height)
    return init.key_(_blank(target), keys.filters, std, signs, generator=generator)


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
    if conv is None or type(conv).reset_parameters is nn.Conv2d.reset_parameters:
        drawn = _blank(target)[:, None]
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            twin = copy.deepcopy(conv).cpu()
            twin.reset_parameters()
        drawn = twin.weight.detach().double()
    return _of_rms(drawn[:, 0], std)


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
