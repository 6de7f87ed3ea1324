"""Coordinates of a family's parameters in which its forms change evenly, on a regular grid.

Along every parameter the grid points are the integers 0 … count − 1, from bound to bound: equal
steps of ``ln(σ² + ¼)`` for a scale, of the logarithm of what its variance adds to the first for a
second, wider scale (from 0.02 to all that its bound leaves), of ``ln(α + 0.1)`` for a strength, and
of half a circle for an angle, since half a turn only changes the sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from keyfilters.receptive_fields.forms import Family

__all__ = ["Grid"]

WIDER = ("sigma_long", "sigma_surround")
OFFSET = {"alpha": 0.1} | dict.fromkeys(WIDER, 0.0)  # of the logarithm's argument; else ¼
SCALE_STEP = {1: 0.05, 2: 0.15, 3: 0.22}  # about, by the number of parameters
STEP = {"angle": math.pi / 24, "alpha": 0.2} | dict.fromkeys(WIDER, 0.25)  # of other parameters
LEAST_GAP = 0.02  # between the variances of two scales


@dataclass(frozen=True)
class Grid:
    """The grid of one family in one window.

    Attributes:
        family: whose parameters it is for.
        size: window ``(k_y, k_x)`` in taps.
    """

    family: Family
    size: tuple[int, int]

    @cached_property
    def axes(self) -> tuple[tuple[str, int, float, float, float], ...]:
        """For every parameter its name, number of grid points, first value, step and bound."""
        found = []
        bounds = self.family.bounds(self.size)
        for name, (least, top) in zip(self.family.parameters, bounds, strict=True):
            step = STEP.get(name, SCALE_STEP[len(bounds)])
            if name == "angle":
                found.append((name, round(math.pi / step), 0.0, step, 2 * math.pi))
                continue
            offset = self._offset(name, least)
            low = math.log(LEAST_GAP if name in WIDER else least**2 + offset)
            high = math.log((top if name == "alpha" else top**2) + offset)
            count = max(4, round((high - low) / step) + 1)
            found.append((name, count, low, (high - low) / (count - 1), top))
        return tuple(found)

    def _offset(self, name: str, least: float) -> float:
        """What is added to σ² before its logarithm is taken; nothing where σ is never 0."""
        return 0.0 if least > 0 else OFFSET.get(name, 0.25)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of grid points along every parameter."""
        return tuple(axis[1] for axis in self.axes)

    @property
    def turns(self) -> tuple[bool, ...]:
        """Which of the parameters are angles."""
        return tuple(name == "angle" for name in self.family.parameters)

    def parameters(self, points: Tensor) -> Tensor:
        """Return the parameters at coordinates ``(n, p)``, within their bounds."""
        columns: list[Tensor] = []
        bounds = self.family.bounds(self.size)
        for (name, count, low, step, top), point, (least, _) in zip(
            self.axes, points.T, bounds, strict=True
        ):
            value = low + step * point
            if name == "angle":
                columns.append(value.remainder(2 * math.pi))
                continue
            if name in WIDER:  # from the least gap to all that is left
                first = columns[0] ** 2
                room = ((top**2 - first) / LEAST_GAP).log()
                value = first + LEAST_GAP * (room * point / (count - 1)).exp()
            else:
                value = (value.exp() - self._offset(name, least)).clamp(min=least**2)
            columns.append((value if name == "alpha" else value.sqrt()).clamp(max=top))
        return torch.stack(columns, dim=1)

    def points(self, parameters: Tensor) -> Tensor:
        """Return the coordinates ``(n, p)`` of parameters; inverse of `parameters`."""
        columns = []
        bounds = self.family.bounds(self.size)
        for (name, count, low, step, top), value, (least, _) in zip(
            self.axes, parameters.T, bounds, strict=True
        ):
            if name in WIDER:
                first = parameters[:, 0] ** 2
                gap = ((value**2 - first).clamp(min=LEAST_GAP) / LEAST_GAP).log()
                columns.append((count - 1) * gap / ((top**2 - first) / LEAST_GAP).log())
                continue
            if name != "angle":
                raw = value if name == "alpha" else value**2
                value = (raw + self._offset(name, least)).log()
            columns.append((value - low) / step)
        return torch.stack(columns, dim=1)

    def nodes(self) -> Tensor:
        """Return all grid points ``(n, p)``, the last parameter fastest; angles go one further."""
        axes = [
            torch.arange(-int(turns), count + int(turns), dtype=torch.float64)
            for count, turns in zip(self.counts, self.turns, strict=True)
        ]
        return torch.cartesian_prod(*axes).reshape(-1, len(axes))

    def starts(self) -> Tensor:
        """Return parameters ``(n, p)`` from which fits start: all pairs of a few values of each."""
        names, top = self.family.parameters, max(self.size) / 2
        few = {1: 20, 2: 8, 3: 5}[len(names)]
        values = {
            "sigma_x": torch.linspace(0.15, 1.0, 6) * self.size[1] / 2,
            "sigma_y": torch.linspace(0.15, 1.0, 6) * self.size[0] / 2,
            "sigma_long": torch.linspace(0.4, 1.6, 4) * top,
            "sigma_surround": torch.linspace(0.25, 1.6, 10) * top,
            "alpha": torch.tensor([0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0]),
            "angle": torch.arange(8) * (math.pi / 8),
        }
        scales = torch.linspace(0.1, 1.0, few) * top
        if min(self.size) < 3:  # long and narrow, with few parameters: also small scales
            scales = torch.logspace(math.log10(0.3), math.log10(top), few)
            wider = torch.logspace(math.log10(0.5), math.log10(1.6 * top), 10)
            values |= {"sigma_x": scales, "sigma_y": scales, "sigma_surround": wider}
        grid = torch.cartesian_prod(*(values.get(name, scales) for name in names))
        grid = grid.reshape(-1, len(names)).double()
        least = torch.tensor([low for low, _ in self.family.bounds(self.size)]).double()
        grid = torch.where(least > 0, grid.maximum(least), grid)
        if {*WIDER, "sigma_across"} & set(names):
            # Equal scales make the form vanish, or one that a simpler family has.
            grid = grid[(grid[:, 0] - grid[:, 1]).abs() > 0.05 * top]
        if set(WIDER) & set(names):  # of two scales either may be the wider one
            grid = torch.stack([grid.amin(1), grid.amax(1)], dim=1)
        return grid
