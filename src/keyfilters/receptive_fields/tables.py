"""Idealised filters on a grid of parameters, with the derivatives by which they are interpolated.

Near a grid point a form is ``m + Σᵢ ξᵢ mᵢ + ½ Σᵢⱼ ξᵢ ξⱼ mᵢⱼ``, with ξ the distance in steps of the
grid and the derivatives as differences between neighbouring grid points. All that a fit needs of a
form are then a few inner products, which are tabulated or cost one product with the filter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, combinations, groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keyfilters.receptive_fields.coordinates import Grid
from keyfilters.receptive_fields.families import MATCHED, in_window
from keyfilters.receptive_fields.forms import Family
from keyfilters.scalespace.products import aligned, each_product
from keyfilters.threads import side_by_side

__all__ = ["Atoms", "Jets", "Tabulated", "atoms_of", "jets_of", "make_tables"]

LARGEST = 81  # taps of a window up to which derivatives are tabulated
ENTRIES = 2**24  # numbers that are drawn at once, about
PART = 1024  # filters whose expansions are held at once, so that they stay in the cache
FLAT = 1e-4  # norm of a centred form over that of the form below which nothing is left of it
DIFFERENCE = 1e-4  # in steps of the grid, for derivatives that are not tabulated


class Atoms(NamedTuple):
    """Unit forms of all matched families, from which fits start.

    Attributes:
        unit: ``(A, taps)`` float32, centred, of unit norm; 0 where nothing is left of a form.
        points: ``(A, p)`` coordinates, 0 beyond the parameters of a family.
        sizes: number of atoms of each family.
        countdown: ``(A, 1)`` int32, numbers of the atoms within their families, counted down.
        zero: ``(F,)`` places at which the countdown of each family would be at 0.
        kept: the bits of a positive float32 that such a number leaves free.
    """

    unit: Tensor
    points: Tensor
    sizes: tuple[int, ...]
    countdown: Tensor
    zero: Tensor
    kept: int

    def runs(self, families: int) -> list[Run]:
        """Divide the first families into runs."""
        found, atom = [], 0
        for size, same in groupby(self.sizes[:families]):
            found.append(Run(len(list(same)), atom, size))
            atom = found[-1].end
        return found


class Run(NamedTuple):
    """Families that follow each other and have as many atoms each.

    Attributes:
        families: how many there are.
        atom: place of their first atom.
        size: number of atoms of each.
    """

    families: int
    atom: int
    size: int

    @property
    def end(self) -> int:
        """Place behind their last atom."""
        return self.atom + self.families * self.size


class Jets:
    """Local expansions to first order about points themselves, drawn anew; for large windows."""

    second = False  # whether there are second derivatives

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(
        self, filters: Tensor, families: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Expand form i of `families` near ``points[:, i]``.

        Args:
            filters: ``(n, taps)``.
            families: ``(n,)`` numbers in `in_window(MATCHED, size)`, all with p parameters.
            points: ``(p, n)`` coordinates.

        Returns:
            Inner products of form and derivatives with the filters ``(q, n)``, and with each other
            ``(q, q, n)``, and ξ ``(p, n)``.
        """
        freedom, taps = len(points), self.size[0] * self.size[1]
        shifts = torch.cat([torch.zeros(1, freedom), DIFFERENCE * torch.eye(freedom)]).double()
        rows = torch.zeros(len(filters), 1 + freedom, taps, dtype=torch.float64).to(points.device)
        for number in families.unique().tolist():
            own = (families == number).nonzero()[:, 0]
            moved = (points.T[own, None].double() + shifts.to(points.device)).flatten(0, 1)
            form = in_window(MATCHED, self.size)[number]
            rows[own] = _centred(Grid(form, self.size), moved).view(len(own), -1, taps)
        rows[:, 1:] = (rows[:, 1:] - rows[:, :1]) / DIFFERENCE
        product, wide = _products(rows.to(points), filters), aligned(rows)
        gram = each_product(wide, wide.mT).permute(1, 2, 0)
        return product, gram.to(points), torch.zeros_like(points)


class Tabulated(Jets):
    """Local expansions to second order about the nearest grid point, from a table of all."""

    second = True

    def __init__(self, size: tuple[int, int], freedom: int, device: torch.device) -> None:
        super().__init__(size)
        q = (freedom + 1) * (freedom + 2) // 2
        forms = in_window(MATCHED, size)
        grids = [Grid(form, size) for form in forms]
        own = [len(grid.counts) == freedom for grid in grids]
        counts = [g.counts if o else (1,) * freedom for g, o in zip(grids, own, strict=True)]
        turns = [g.turns if o else (False,) * freedom for g, o in zip(grids, own, strict=True)]
        seen = [o and min(size) >= g.family.smallest for g, o in zip(grids, own, strict=True)]
        sizes = [math.prod(c) * s for c, s in zip(counts, seen, strict=True)]
        first = [0, *accumulate(sizes)]
        rows = torch.empty(first[-1], q, size[0] * size[1])
        gram = torch.empty(q, q, first[-1])
        for grid, start, end in zip(grids, first, first[1:], strict=False):
            if end > start:
                expanded = _expanded(grid)
                rows[start:end] = expanded
                gram[:, :, start:end] = (expanded @ expanded.mT).permute(1, 2, 0)
        self.rows, self.gram = rows.to(device), gram.to(device)
        self.counts = torch.tensor(counts, dtype=torch.float32, device=device).T.contiguous()
        self.turns = torch.tensor(turns, device=device).T.contiguous()
        self.first = torch.tensor(first[:-1], device=device)

    def __call__(
        self, filters: Tensor, families: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Expand form i of `families` near ``points[:, i]``, see `Jets`."""
        counts, node = self.counts.index_select(1, families), points.round()
        inside = node.clamp(min=0).minimum(counts - 1)
        node = torch.where(self.turns.index_select(1, families), node, inside)
        place = torch.zeros_like(node[0])
        for count, index in zip(counts, node.remainder(counts), strict=True):
            place = place * count + index
        where = self.first.index_select(0, families) + place.long()
        pairs = zip(where.split(PART), filters.split(PART), strict=True)
        products = [_products(self.rows.index_select(0, own), part) for own, part in pairs]
        product = torch.cat(products, dim=1)
        q = len(product)
        gram = self.gram.view(q * q, -1).index_select(1, where).view(q, q, -1)
        return product, gram, points - node


@lru_cache(maxsize=6)
def jets_of(size: tuple[int, int], freedom: int, device: torch.device) -> Jets:
    """Return the expansions of the families with so many parameters."""
    tabulated = size[0] * size[1] <= LARGEST
    return Tabulated(size, freedom, device) if tabulated else Jets(size)


@lru_cache(maxsize=8)
def atoms_of(size: tuple[int, int], device: torch.device) -> Atoms:
    """Return the forms from which fits in a window start."""
    unit, points = [], []
    for form in in_window(MATCHED, size):
        grid = Grid(form, size)
        points.append(grid.points(grid.starts()))
        drawn = _centred(grid, points[-1])
        norm = drawn.norm(dim=1, keepdim=True)
        shown = (norm > 0) & (min(size) >= form.smallest)
        unit.append(torch.where(shown, drawn / norm, torch.zeros_like(drawn)).float())
    most = max(x.shape[1] for x in points)
    placed = torch.cat([nn.functional.pad(x.float(), (0, most - x.shape[1])) for x in points])
    sizes = tuple(map(len, points))
    taken = (max(sizes) - 1).bit_length()
    largest = 2**taken - 1
    countdown = torch.cat([largest - torch.arange(n, dtype=torch.int32) for n in sizes])
    zero = torch.tensor([first + largest for first in accumulate(sizes[:-1], initial=0)])
    return Atoms(
        torch.cat(unit).to(device),
        placed.to(device),
        sizes,
        countdown[:, None].to(device),
        zero.to(device),
        0x7FFFFFFF & ~largest,
    )


def make_tables(size: tuple[int, int], device: torch.device, forms: Sequence[Family] = ()) -> None:
    """Make what `atoms_of` and `jets_of` return, before several threads want it.

    Args:
        size: window ``(k_y, k_x)``.
        device: where it is needed.
        forms: whose expansions are needed; default: all.
    """
    forms = forms or in_window(MATCHED, size)
    most_first = sorted({len(form.parameters) for form in forms}, reverse=True)
    tasks: list[Callable[[], object]] = [partial(jets_of, size, p, device) for p in most_first]
    tasks.append(partial(atoms_of, size, device))
    deque(side_by_side(tasks), maxlen=0)


def _products(rows: Tensor, filters: Tensor) -> Tensor:
    """Inner products ``(q, n)`` of ``(n, q, taps)`` and ``(n, taps)``."""
    # Not as a product of matrices: quicker here, and its bits depend on nothing beside a row.
    return torch.linalg.vecdot(rows, filters[:, None]).T


def _centred(grid: Grid, points: Tensor) -> Tensor:
    """Draw forms at coordinates ``(n, p)`` and centre them, ``(n, taps)`` float64; 0 if flat."""
    parts = []
    for part in points.double().split(max(1, ENTRIES // (25 * grid.size[0] * grid.size[1]))):
        drawn = grid.family.render(grid.parameters(part), grid.size).flatten(1)
        centred = drawn - drawn.mean(1, keepdim=True)
        shown = centred.norm(dim=1, keepdim=True) > FLAT * drawn.norm(dim=1, keepdim=True)
        parts.append(torch.where(shown, centred, torch.zeros_like(centred)))
    return torch.cat(parts)


def _expanded(grid: Grid) -> Tensor:
    """Expansions ``(nodes, q, taps)`` float64 of a family, with forms of unit norm."""
    p, counts = len(grid.counts), grid.counts
    wide = [n + 2 * turns for n, turns in zip(counts, grid.turns, strict=True)]
    drawn = _centred(grid, grid.nodes()).view(*wide, -1)
    for axis, turns in enumerate(grid.turns):
        if not turns:  # one point more at either end, as a parabola goes on
            low, high = drawn.narrow(axis, 0, 3), drawn.narrow(axis, counts[axis] - 3, 3).flip(axis)
            ends = [3 * (a - b) + c for a, b, c in (x.split(1, axis) for x in (low, high))]
            drawn = torch.cat([ends[0], drawn, ends[1]], dim=axis)

    def at(*offsets: tuple[int, int]) -> Tensor:
        shift = dict(offsets)
        inner = [slice(1 + shift.get(i, 0), 1 + shift.get(i, 0) + n) for i, n in enumerate(counts)]
        return drawn[tuple(inner)].reshape(-1, drawn.shape[-1])

    here = at()
    rows = [here, *((at((i, 1)) - at((i, -1))) / 2 for i in range(p))]
    rows += [at((i, 1)) - 2 * here + at((i, -1)) for i in range(p)]
    for i, j in combinations(range(p), 2):
        signs = ((1, 1), (-1, -1), (1, -1), (-1, 1))
        rows.append(torch.stack([a * b * at((i, a), (j, b)) for a, b in signs]).sum(0) / 4)
    norm = here.norm(dim=1)[:, None, None]
    return torch.stack(rows, dim=1).div_(norm).nan_to_num_(0.0, 0.0, 0.0)  # 0 where norm is 0
