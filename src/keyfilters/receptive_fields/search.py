"""Searching the idealised form that explains each filter best, for a part of a bank.

Every family is scored on a grid of scales by a product of matrices. For the best few of each filter
the parameters are refined by damped Newton steps on tabulated forms, and those that can still win
are drawn exactly, in float64, with amplitude and offset in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from keyfilters.receptive_fields.coordinates import Grid
from keyfilters.receptive_fields.families import MATCHED, in_window
from keyfilters.receptive_fields.forms import Family
from keyfilters.receptive_fields.significance import FLOOR
from keyfilters.receptive_fields.solver import ROUNDS, Climb
from keyfilters.receptive_fields.tables import atoms_of, jets_of

__all__ = ["NUMBERS", "WORTH_MENTION", "search", "separable_count"]

REFINED = (3, 2)  # separable families and others that are refined for every filter
TRIED = 512  # filters for which the grid is tried at once
WORTH_MENTION = 2.0  # difference of the criterion below which the simpler family is preferred
SLACK = 0.5  # by which the criterion of a local expansion may be wrong
REACH = (0.45, 0.25)  # radians that a form may yet turn: from the grid, and after each expansion
NUMBERS = ("sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2", "parameters")


def search(
    filters: Tensor, unit: int, size: tuple[int, int], forms: Sequence[Family]
) -> dict[str, Tensor]:
    """Match ``(n, taps)`` centred filters of unit norm: columns as ``(n,)`` tensors.

    The grid is tried for at most `unit` filters at a time, so that its products stay in the cache.
    """
    device, taps = filters.device, filters.shape[1]
    freedom = torch.tensor([len(form.parameters) for form in forms], device=device)
    tried = [_candidates(part, size, freedom, separable_count(forms))
             for part in filters.float().split(min(unit, TRIED))]  # fmt: skip
    candidates, on_grid, points = (torch.cat(x) for x in zip(*tried, strict=True))
    which = candidates.flatten()
    rows = torch.arange(len(filters), device=device).repeat_interleave(candidates.shape[1])
    local = _refine(filters.float(), candidates, on_grid, points, size, freedom)
    expected = _criterion(local, freedom[candidates], taps)
    ranks = torch.tensor([form.rank for form in forms], device=device)[candidates].double()
    found = {name: torch.full_like(which, math.nan, dtype=torch.float64) for name in NUMBERS}
    can_win = _can_win(expected, ranks)
    for number, own in _by_family(which, can_win.flatten().nonzero()[:, 0]):
        held = filters.index_select(0, rows.index_select(0, own))
        measured = _measure(forms[number], points.index_select(0, own), held, size)
        for name, values in measured.items():
            found[name].index_copy_(0, own, values)
    found |= {"family": which.double(), "parameters": freedom[which] + 2.0}
    drawn = _criterion(found["r2"].view_as(candidates), freedom[candidates], taps)
    drawn = drawn.where(can_win, drawn.new_tensor(math.inf))
    least = torch.where(can_win, drawn, expected).amin(1, keepdim=True)
    as_good = drawn <= (least + WORTH_MENTION).maximum(drawn.amin(1, keepdim=True))
    simplicity = ranks.masked_fill(~as_good, math.inf)
    simplest = simplicity == simplicity.amin(1, keepdim=True)
    winner = drawn.masked_fill(~simplest, math.inf).argmin(1)
    place = torch.arange(len(filters), device=device) * candidates.shape[1] + winner
    return {name: values.index_select(0, place) for name, values in found.items()}


def _can_win(expected: Tensor, ranks: Tensor) -> Tensor:
    """Whether a candidate may win, though its criterion is known to `SLACK` only, ``(n, c)``.

    It is nearly as good as the best one, and none that is simpler surely is.
    """
    behind = expected - expected.amin(1, keepdim=True)
    surely = behind <= WORTH_MENTION - SLACK
    simplest = ranks.masked_fill(~surely, math.inf).amin(1, keepdim=True)
    return (behind <= WORTH_MENTION + SLACK) & (ranks <= simplest)


def _candidates(
    filters: Tensor, size: tuple[int, int], freedom: Tensor, separable: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Families that the criterion likes best on the grid, and where on it they do best.

    Returns:
        Numbers of families and their shares on the grid ``(n, c)``, and their coordinates there,
        ``(n · c, p)``.
    """
    atoms = atoms_of(size, filters.device)
    runs = atoms.runs(len(freedom))
    products = atoms.unit[: runs[-1].end] @ filters.T
    # The last bits of a product give way to a number: the largest one names its atom, and of equal
    # ones the first.
    bits = products.view(torch.int32).bitwise_and_(atoms.kept)
    bits |= atoms.countdown[: len(products)]
    largest = [bits[r.atom : r.end].view(r.families, r.size, -1).amax(1) for r in runs]
    best = torch.cat(largest).T.contiguous()
    share = best.bitwise_and(atoms.kept).view(torch.float32).square_()
    on_grid = _criterion(share, freedom, filters.shape[1])
    chosen, start = [], 0
    for part, refined in zip(on_grid.tensor_split([separable], dim=1), REFINED, strict=True):
        count = min(refined, part.shape[1])
        chosen.append(part.topk(count, dim=1, largest=False).indices + start)
        start += part.shape[1]
    numbers = torch.cat(chosen, dim=1)
    where = atoms.zero[numbers] - best.gather(1, numbers).bitwise_and_(~atoms.kept)
    return numbers, share.gather(1, numbers), atoms.points[where.flatten()]


def _refine(
    filters: Tensor,
    candidates: Tensor,
    on_grid: Tensor,
    points: Tensor,
    size: tuple[int, int],
    freedom: Tensor,
) -> Tensor:
    """Move coordinates to where forms explain most; return the shares, ``(n, c)``.

    A candidate that is too far behind the best one of its filter stays where it is.
    """
    which, free = candidates.flatten(), freedom[candidates]
    local, taps = on_grid.flatten().clone(), filters.shape[1]

    def hopeless(reach: float) -> Tensor:
        """Whether a candidate cannot win, even if its form turns so many radians further.

        What the best form of a family leaves of a filter is orthogonal to the forms near it, so
        that a form at the angle d from it explains its share times cos² d.
        """
        share = local.view_as(candidates).clamp(0, 1)
        nearest = (share / math.cos(reach) ** 2).clamp_max(1)
        least = _criterion(share, free, taps).amin(1, keepdim=True)
        return (_criterion(nearest, free, taps) > least + WORTH_MENTION + SLACK).flatten()

    left_out = hopeless(REACH[0])
    climbs = []
    for p in freedom.unique().tolist():
        known, tops = (x.to(filters.device) for x in _largest_coordinates(size, p))
        own = (known[which] & ~left_out).nonzero()[:, 0]
        if len(own):
            families, jets = which.index_select(0, own), jets_of(size, p, filters.device)
            start, rows = points.index_select(0, own)[:, :p], own // candidates.shape[1]
            climb = Climb(filters, rows, families, start, tops[families], jets)
            climbs.append((own, climb))
    for _ in range(ROUNDS):
        for own, climb in climbs:
            climb.advance()
            local.index_copy_(0, own, climb.share)
        left_out = hopeless(REACH[1])
        for own, climb in climbs:
            climb.stop(left_out[own])
    for own, climb in climbs:
        points[own, : len(climb.place)] = climb.place.T
    return local.view_as(candidates)


@lru_cache(maxsize=32)
def _largest_coordinates(size: tuple[int, int], freedom: int) -> tuple[Tensor, Tensor]:
    """Say which families have so many parameters, ``(F,)``, and where their grids end, ``(F, p)``.

    A coordinate that turns has no end.
    """
    forms = in_window(MATCHED, size)
    known = torch.tensor([len(form.parameters) == freedom for form in forms])
    tops = torch.zeros(len(forms), freedom)
    for number in known.nonzero()[:, 0].tolist():
        grid = Grid(forms[number], size)
        tops[number] = torch.tensor(grid.counts) - 1
        tops[number, torch.tensor(grid.turns)] = math.inf
    return known, tops


def _by_family(families: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Divide rows by the family that they name, ``families[row]``."""
    counts = torch.bincount(families[rows]).tolist()
    parts = rows[families[rows].argsort(stable=True)].split(counts)
    return ((number, part) for number, part in enumerate(parts) if len(part))


def _measure(
    form: Family, points: Tensor, filters: Tensor, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Draw models exactly, and fit amplitude and offset: columns as ``(n,)`` float64 tensors."""
    parameters = Grid(form, size).parameters(points[:, : len(form.parameters)].double())
    drawn = form.render(parameters, size).flatten(1)
    level = drawn.mean(1)
    centred = drawn - level[:, None]
    power = (centred**2).sum(1)
    shown = power > 1e-9 * (drawn**2).sum(1)
    along = (centred * filters).sum(1)
    amplitude = torch.where(shown, along / power.where(shown, torch.ones_like(power)), 0)
    columns = dict(zip(form.columns(size), parameters.T, strict=True))
    if form.separable is None and min(size) > 1:
        columns["sigma_y"] = columns["sigma_x"]
    r2 = (amplitude * along).clamp(0.0, 1.0)
    return columns | {"amplitude": amplitude, "offset": -amplitude * level, "r2": r2}


def _criterion(r2: Tensor, freedom: Tensor, taps: int) -> Tensor:
    """Bayesian information criterion up to a constant, for so many parameters; less is better."""
    return taps * torch.log((1 - r2).clamp_min(FLOOR)) + (2 + freedom) * math.log(taps)


def separable_count(forms: Sequence[Family]) -> int:
    """Return the number of separable families, which come first."""
    return sum(form.separable is not None for form in forms)
