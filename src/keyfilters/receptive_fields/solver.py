"""Fitting forms to many filters at once: ``f ≈ a · m(p) + b``, by damped Newton steps.

Amplitude and offset have a closed form (variable projection): the share of a filter's variance that
a form explains is ``⟨f, m⟩² / (⟨m, m⟩ ⟨f, f⟩)``, with f and m centred. The steps are taken in the
coordinates of `keyfilters.receptive_fields.coordinates`, on local expansions of the forms. Where
these have second derivatives the steps are Newton's, else, and where the share is not concave,
Gauss–Newton's. Everything is kept with the filters along the last axis, one vector a number.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from keyfilters.receptive_fields.tables import Jets

__all__ = ["ROUNDS", "Climb"]

ROUNDS, STEPS = 4, 2  # on second derivatives: how often a form is expanded, and steps on each
SETTLED = 0.1  # in steps of the grid: a filter whose last step is shorter has arrived
LEVEL = 1e-5  # a share that falls by less has only met rounding
DRAWN = 8  # how often a form is drawn anew where there are no second derivatives
LONGEST = {1: 6.0, 2: 2.2, 3: 1.5}  # a step in steps of the grid, by the number of parameters
TINY = 1e-12


class _Expansion(NamedTuple):
    """Products with the filters ``(q, n)``, inner products ``(q, q, n)``, and ξ ``(p, n)``."""

    product: Tensor
    gram: Tensor
    distance: Tensor

    def basis(self) -> list[Tensor]:
        """Return ξᵢ, ½ ξᵢ² and ξᵢ ξⱼ, of which only the first if the expansion is of first order.

        The basis begins with 1, which is left out.
        """
        xi = list(self.distance)
        if len(self.product) == 1 + len(xi):
            return xi
        return [*xi, *(x**2 / 2 for x in xi), *(x * y for x, y in combinations(xi, 2))]

    def slopes(self, table: Tensor) -> list[Tensor]:
        """Contract the first axis with the derivatives of the basis along each ξᵢ."""
        xi, p = self.distance, len(self.distance)
        found = [table[1 + i] for i in range(p)]
        if len(table) > 1 + p:
            found = [torch.addcmul(found[i], xi[i], table[1 + p + i]) for i in range(p)]
            for number, (i, j) in enumerate(combinations(range(p), 2), start=1 + 2 * p):
                found[i].addcmul_(xi[j], table[number])
                found[j].addcmul_(xi[i], table[number])
        return found

    def form(self) -> _Form:
        """Return the form where the filters are."""
        basis = self.basis()
        weighted = _contract(basis, self.gram)
        power, along = _contract(basis, weighted), _contract(basis, self.product)
        shown = power > TINY
        safe = torch.where(shown, power, torch.ones_like(power))
        amplitude = torch.where(shown, along / safe, torch.zeros_like(power))
        return _Form(weighted, safe, amplitude, amplitude * along)


class _Form(NamedTuple):
    """A form at one point: its inner products with all of an expansion, and how it fits.

    Attributes:
        weighted: ``(q, n)`` inner products.
        power: ``(n,)`` with itself, 1 where nothing is left of it.
        amplitude: ``(n,)`` the best one.
        share: ``(n,)`` explained with it.
    """

    weighted: Tensor
    power: Tensor
    amplitude: Tensor
    share: Tensor


def _contract(basis: list[Tensor], table: Tensor) -> Tensor:
    """Contract the first axis with the basis: 1, and the numbers given."""
    total = torch.addcmul(table[0], basis[0], table[1])
    for number, weight in enumerate(basis[1:], start=2):
        total.addcmul_(weight, table[number])
    return total


class _Share(NamedTuple):
    """Explained share, and all that a step needs, as ``(n,)`` tensors."""

    share: Tensor
    gradient: list[Tensor]
    hessian: list[list[Tensor]]
    scale: list[Tensor]  # diagonal of the Gauss–Newton matrix

    def where(self, better: Tensor, other: _Share) -> _Share:
        """Take this where it is better, else the other."""

        def pick(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
            return [torch.where(better, x, y) for x, y in zip(a, b, strict=True)]

        rows = zip(self.hessian, other.hessian, strict=True)
        return _Share(
            torch.where(better, self.share, other.share),
            pick(self.gradient, other.gradient),
            [pick(a, b) for a, b in rows],
            pick(self.scale, other.scale),
        )


class Climb:
    """Filters that climb to where a family explains most of them, one family each.

    Args:
        filters: ``(m, taps)`` centred, of unit norm.
        rows: ``(n,)`` which of the filters each climb is for.
        families: ``(n,)`` numbers in ``in_window(MATCHED, size)``, all with p parameters.
        points: ``(n, p)`` coordinates where to start.
        tops: ``(n, p)`` largest coordinates; the least is 0, or −inf where the largest is inf.
        jets: local expansions of the forms.

    Attributes:
        place: ``(p, n)`` coordinates so far.
        share: ``(n,)`` the explained share there, as the expansion has it.
        moving: numbers of the climbs that have not arrived.
    """

    def __init__(
        self,
        filters: Tensor,
        rows: Tensor,
        families: Tensor,
        points: Tensor,
        tops: Tensor,
        jets: Jets,
    ) -> None:
        self.filters, self.rows, self.families, self.jets = filters, rows, families, jets
        self.place, self.highs = points.T.contiguous(), tops.T
        self.lows = torch.where(self.highs.isinf(), -self.highs, torch.zeros_like(self.highs))
        self.share = torch.zeros_like(self.place[0])
        self.damping = torch.full_like(self.share, 1e-3)
        self.moving = torch.arange(len(self.share), device=self.share.device)

    def advance(self) -> None:
        """Take some steps with the filters that move.

        With second derivatives these are a few steps on one expansion, without them all steps.
        """
        if len(self.moving):
            (self._newton if self.jets.second else self._gauss_newton)()

    def stop(self, hopeless: Tensor) -> None:
        """Take no further step with filters that are `hopeless`, ``(n,)`` bool."""
        self.moving = self.moving[~hopeless[self.moving]]

    def _newton(self) -> None:
        moving = self.moving
        start, low, high = (x.index_select(1, moving) for x in (self.place, self.lows, self.highs))
        rows, families, damp = (
            x.index_select(0, moving) for x in (self.rows, self.families, self.damping)
        )
        local = _Expansion(*self.jets(self.filters.index_select(0, rows), families, start))
        node = start - local.distance
        for _ in range(STEPS):
            here, before = _share(local), node + local.distance
            moved = (before + _step(here, before, low, high, damp)).maximum(low).minimum(high)
            tried = local._replace(distance=moved - node)
            share = tried.form().share
            better, lost = share > here.share, here.share - share
            damp = _damping(damp, better, 0.1)
            local = tried._replace(distance=torch.where(better, tried.distance, local.distance))
        self.place.index_copy_(1, moving, node + local.distance)
        self.share.index_copy_(0, moving, torch.where(better, share, here.share))
        self.damping.index_copy_(0, moving, damp)
        far = (moved - before).abs().amax(0) > SETTLED
        off = (local.distance.abs() > 0.5 + SETTLED).any(0)  # another expansion is nearer
        self.moving = moving[far | off | (lost > LEVEL)]  # one taken back is tried again

    def _gauss_newton(self) -> None:
        filters, lows, highs = self.filters[self.rows], self.lows, self.highs
        damping, best = self.damping, self.place
        here = _share(_Expansion(*self.jets(filters, self.families, best)))
        for _ in range(DRAWN):
            place = (best + _step(here, best, lows, highs, damping, 4)).maximum(lows).minimum(highs)
            shares = _share(_Expansion(*self.jets(filters, self.families, place)))
            better = shares.share > here.share
            damping = _damping(damping, better, 0.2)
            best, here = torch.where(better, place, best), shares.where(better, here)
        self.place, self.share, self.moving = best, here.share, self.moving[:0]


def _damping(damping: Tensor, better: Tensor, eased: float) -> Tensor:
    return torch.where(better, damping * eased, (damping * 10).clamp_min(0.1))


def _share(local: _Expansion) -> _Share:
    weighted, safe, amplitude, share = local.form()
    steep = local.slopes(weighted)  # ⟨derivative, form⟩
    slope = [s - amplitude * t for s, t in zip(local.slopes(local.product), steep, strict=True)]
    inner = [local.slopes(column) for column in local.slopes(local.gram)]
    p = len(steep)
    squared = amplitude**2
    normal = [[squared * (inner[i][j] - steep[i] * steep[j] / safe) for j in range(p)]
              for i in range(p)]  # fmt: skip
    gradient = [amplitude * s for s in slope]
    scale = [normal[i][i] for i in range(p)]
    if len(weighted) == 1 + p:
        return _Share(share, gradient, normal, scale)
    residual = amplitude * (local.product - amplitude * weighted)
    mixed = [amplitude * t - s for s, t in zip(slope, steep, strict=True)]
    newton = [[squared * inner[i][j] - mixed[i] * mixed[j] / safe for j in range(p)]
              for i in range(p)]  # fmt: skip
    for i in range(p):
        newton[i][i] = newton[i][i] - residual[1 + p + i]
    for number, (i, j) in enumerate(combinations(range(p), 2), start=1 + 2 * p):
        newton[i][j] = newton[j][i] = newton[i][j] - residual[number]
    concave = _solve(newton, gradient)[1]
    hessian = [[torch.where(concave, newton[i][j], normal[i][j]) for j in range(p)]
               for i in range(p)]  # fmt: skip
    return _Share(share, gradient, hessian, scale)


def _step(
    here: _Share,
    place: Tensor,
    lows: Tensor,
    highs: Tensor,
    damping: Tensor,
    reach: float = 1,
) -> Tensor:
    """Damped step ``(p, n)``; a coordinate at a bound that it would leave stays there."""
    p = len(place)
    longest = LONGEST[p] * reach
    held = [((place[i] <= lows[i]) & (g < 0)) | ((place[i] >= highs[i]) & (g > 0))
            for i, g in enumerate(here.gradient)]  # fmt: skip
    zero, one = torch.zeros_like(damping), torch.ones_like(damping)
    matrix = [[torch.where(held[i] | held[j], zero, here.hessian[i][j]) for j in range(p)]
              for i in range(p)]  # fmt: skip
    for i in range(p):
        damped = matrix[i][i] + here.scale[i] * damping + 1e-9
        matrix[i][i] = torch.where(held[i], one, damped)
    right = [torch.where(h, zero, g) for h, g in zip(held, here.gradient, strict=True)]
    return torch.stack(_solve(matrix, right)[0]).clamp(-longest, longest)


def _solve(matrix: list[list[Tensor]], right: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Solve symmetric systems by elimination; also say whether all pivots are positive."""
    p = len(right)
    a, b = [list(row) for row in matrix], list(right)
    positive = torch.ones_like(b[0], dtype=torch.bool)
    for i in range(p):
        positive = positive & (a[i][i] > 0)
        a[i][i] = torch.where(a[i][i].abs() > TINY**2, a[i][i], torch.full_like(b[0], TINY**2))
        for j in range(i + 1, p):
            factor = a[i][j] / a[i][i]
            for k in range(j, p):
                a[j][k] = a[j][k] - factor * a[i][k]
            b[j] = b[j] - factor * b[i]
    for i in reversed(range(p)):
        for k in range(i + 1, p):
            b[i] = b[i] - a[i][k] * b[k]
        b[i] = b[i] / a[i][i]
    return b, positive
