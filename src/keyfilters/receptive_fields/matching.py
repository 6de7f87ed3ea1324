"""Explaining every filter of a bank by the best idealised receptive field.

Every family is scored on a grid of scales by a product of matrices. For the best few of each filter
the parameters are refined by damped Newton steps on tabulated forms, and those that can still win
are drawn exactly, in float64, with amplitude and offset in closed form.

Families differ in freedom, so the winner is chosen by the Bayesian information criterion
``N ln(1 - r²) + p ln N`` over the N taps, with p parameters (amplitude and offset included): the
families are not nested, so likelihood ratios do not apply, and the criterion asks a further
parameter to explain what N taps of noise would not. Among families that differ by less than 2, "not
worth more than a bare mention", the simplest wins. What a family so chosen reaches by chance is
measured: null filters are matched in the same way, and the p-value is the share of them that reach
the same r², see `keyfilters.receptive_fields.significance`. Trained filters are smooth, so that the
null has their tap covariance where there are filters enough to know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.nulls import null_units
from keyfilters.receptive_fields.coordinates import Grid
from keyfilters.receptive_fields.families import MATCHED, in_window
from keyfilters.receptive_fields.forms import Family
from keyfilters.receptive_fields.significance import FLOOR, choose_null, significance
from keyfilters.receptive_fields.solver import ROUNDS, Climb
from keyfilters.receptive_fields.tables import PART, atoms_of, jets_of, make_tables
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.seeds import child_seed
from keyfilters.sizes import extent
from keyfilters.threads import in_parts, one_thread, workers

__all__ = ["has_models", "match"]

REFINED = (3, 2)  # separable families and others that are refined for every filter
TRIED = 512  # filters for which the grid is tried at once
WORTH_MENTION = 2.0  # difference of the criterion below which the simpler family is preferred
SLACK = 0.5  # by which the criterion of a local expansion may be wrong
REACH = (0.45, 0.25)  # radians that a form may yet turn: from the grid, and after each expansion
NULL_DRAWS = 1000
ENTRIES = 2**23  # numbers of a large matrix of filters that are matched together, about
_NUMBERS = ("sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2", "parameters")


def match(
    filters: NDArray[Any] | Tensor,
    *,
    families: str = "all",
    null: str | FilterBank | None = "auto",
    bank: FilterBank | None = None,
    device: str = "cpu",
    chunk: int = 16384,
    null_draws: int = NULL_DRAWS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Find the idealised filter that explains each filter best: ``f ≈ amplitude · model + offset``.

    The bits of a result depend neither on the chunks nor on the number of threads.

    Args:
        filters: ``(n, k_y, k_x)`` of any real type and scale, at least 3 taps along one side. The
            models of an even side are centred half-way between taps, and in windows of one or two
            rows or columns those are left that differ there, see `Family.in_window`.
        families: ``"all"``, or ``"separable"`` for the 25 pairs of operators of order 0 to 2.
        null: kind of the null filters, see `keyfilters.null_bank`; ``"auto"`` for covariance where
            a bank or at least five filters a tap are given, else white; a bank of null filters of
            your own, such as ``keyfilters.null_bank(bank, "covariance", by_layer=True)``; None
            leaves p and q out.
        bank: whose filters of this size the null is made from; None for the filters given.
        device: where to compute.
        chunk: about the largest number of filters between two calls of `progress`, in each thread.
        null_draws: number of null filters; 0 leaves p and q out.
        seed: of the null filters.
        progress: called with the number of filters done and in all.

    Returns:
        A frame with one row a filter: family, kind, sigma_x, sigma_y (taps), second (what other
        scale or strength the family has), angle (radians counter-clockwise from x; sigma_x is then
        the scale along it; sigma_y is NaN in one or two rows, sigma_x in as few columns, unless
        one scale serves both), amplitude (of the model as rendered), offset (per tap), r2,
        parameters (their number, amplitude and offset included), p, q (its false-discovery rate
        over the filters given), p_from (``"count"``, ``"tail"`` or ``"floor"``), null (its
        kind, or ``"given"``), and flaw: ``"constant"``, ``"dead"`` (zero) or ``"non-finite"`` for a
        filter without a shape, whose other columns are empty.

    Raises:
        KeyFiltersError: wrong shape, less than 3 taps along both sides, unknown families or null, a
            bank without filters of this size.

    >>> from keyfilters.receptive_fields import family
    >>> edge = family("x:d y:0").render(torch.tensor([[0.8, 1.1]]), (7, 7))
    >>> match(-3 * edge + 0.5)[["family", "sigma_x", "sigma_y", "amplitude", "offset"]].round(2)
        family  sigma_x  sigma_y  amplitude  offset
    0  x:d y:0      0.8      1.1       -3.0     0.5
    """
    stack = _checked(filters)
    if families not in ("all", "separable"):
        raise KeyFiltersError(f"families must be 'all' or 'separable', got {families!r}")
    flaw = why_unusable(stack, dead_below=0.0)  # whatever the scale
    usable = stack[flaw == ""]
    forms = in_window(MATCHED, (stack.shape[1], stack.shape[2]))
    if families == "separable":
        forms = forms[: _separable(forms)]
    found = _match_all(usable, forms, torch.device(device), chunk, progress)
    table = found.reindex(np.where(flaw == "", np.cumsum(flaw == "") - 1, -1)).reset_index(
        drop=True
    )
    table = table.fillna({"family": "", "kind": ""})
    if null is not None and null_draws:
        null_r2, kind = _null_r2(usable, bank, null, families, null_draws, seed, device)
        table = pd.concat([table, significance(table["r2"].to_numpy(), null_r2, kind)], axis=1)
    return table.assign(flaw=flaw)


def has_models(size: tuple[int, int]) -> bool:
    """Whether `match` takes filters of a window ``(k_y, k_x)``.

    >>> has_models((4, 4)), has_models((1, 7)), has_models((2, 2))
    (True, True, False)
    """
    return max(size) >= 3 and min(size) >= 1


def _separable(forms: Sequence[Family]) -> int:
    """Number of separable families, which come first."""
    return sum(form.separable is not None for form in forms)


@one_thread()  # also what is made for all parts
def _match_all(
    filters: NDArray[np.float64],
    forms: Sequence[Family],
    device: torch.device,
    chunk: int,
    progress: Callable[[int, int], None] | None,
) -> pd.DataFrame:
    """Match filters that have a shape, part by part, several threads at a time."""
    size = (filters.shape[1], filters.shape[2])
    make_tables(size, device, forms)
    columns = {name: np.empty(len(filters)) for name in ("family", *_NUMBERS)}
    most = max(8, ENTRIES // (10 * max(size) ** 2))
    # Starts of parts are multiples of it, whatever the chunk; those of callers too (columns.GRAIN).
    unit = min(PART, 2 ** (most.bit_length() - 1))
    even = math.ceil(len(filters) / (workers() * unit))
    part = max(1, min(chunk // unit, most // unit, even)) * unit
    lock, done = Lock(), 0

    def work(rows: slice) -> None:
        nonlocal done
        units, mean, norm = _centred(filters[rows])
        found = _match_part(torch.from_numpy(units).to(device), unit, size, forms)
        for name, values in found.items():
            columns[name][rows] = values.cpu().numpy()
        columns["amplitude"][rows] *= norm
        columns["offset"][rows] = columns["offset"][rows] * norm + mean
        with lock:
            done += rows.stop - rows.start
            if progress is not None:
                progress(done, len(filters))

    in_parts(work, len(filters), part)
    won = [forms[int(i)] for i in columns.pop("family")]
    names = {"family": [form.name for form in won], "kind": [form.kind for form in won]}
    texts = {name: pd.Series(words, dtype=str) for name, words in names.items()}  # also of none
    return pd.DataFrame(texts | columns)


def _match_part(
    filters: Tensor, unit: int, size: tuple[int, int], forms: Sequence[Family]
) -> dict[str, Tensor]:
    """Match ``(n, taps)`` centred filters of unit norm: columns as ``(n,)`` tensors.

    The grid is tried for at most `unit` filters at a time, so that its products stay in the cache.
    """
    device, taps = filters.device, filters.shape[1]
    freedom = torch.tensor([len(form.parameters) for form in forms], device=device)
    tried = [_candidates(part, size, freedom, _separable(forms))
             for part in filters.float().split(min(unit, TRIED))]  # fmt: skip
    candidates, on_grid, points = (torch.cat(x) for x in zip(*tried, strict=True))
    which = candidates.flatten()
    rows = torch.arange(len(filters), device=device).repeat_interleave(candidates.shape[1])
    local = _refine(filters.float(), candidates, on_grid, points, size, freedom)
    expected = _criterion(local, freedom[candidates], taps)
    ranks = torch.tensor([form.rank for form in forms], device=device)[candidates].double()
    found = {name: torch.full_like(which, math.nan, dtype=torch.float64) for name in _NUMBERS}
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


def _null_r2(
    filters: NDArray[np.floating[Any]],
    bank: FilterBank | None,
    null: str | FilterBank,
    families: str,
    draws: int,
    seed: int,
    device: str,
) -> tuple[NDArray[np.float64], str]:
    """Explained shares of null filters, matched in the same way, and the kind of null."""
    size = (filters.shape[1], filters.shape[2])
    if isinstance(null, FilterBank):
        held, rows = null.stack(size)
        drawn = held[(rows["flaw"] == "").to_numpy()]
        if len(drawn) > draws:
            generator = np.random.default_rng(child_seed(seed, "null filters given"))
            drawn = drawn[np.sort(generator.choice(len(drawn), draws, replace=False))]
        found = match(drawn, families=families, null=None, device=device)
        return found["r2"].to_numpy(), "given"
    if bank is not None:
        held, rows = bank.stack(size)
        filters = held[(rows["flaw"] == "").to_numpy()]
    kind = choose_null(null, len(filters), size[0] * size[1])
    if not len(filters):
        return np.empty(0), kind
    drawn = null_units(centred_unit(filters), size, kind, seed, draws).reshape(-1, *size)
    found = match(drawn, families=families, null=None, device=device)
    return found["r2"].to_numpy(), kind


def _centred(
    stack: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return filters ``(n, taps)`` centred and of unit norm, their means and their norms."""
    scale = 2.0 ** np.clip(np.frexp(np.abs(stack).max((1, 2)))[1], -1000, 1000)
    flat = (stack / scale[:, None, None]).reshape(
        len(stack), -1
    )  # exactly; squares do not overflow
    mean = flat.mean(1)
    flat = flat - mean[:, None]
    spread = 2.0 ** np.frexp(np.abs(flat).max(1))[1]
    flat /= spread[:, None]
    norm = np.sqrt((flat**2).sum(1))
    return flat / norm[:, None], mean * scale, norm * spread * scale


def _checked(filters: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    if isinstance(filters, Tensor):
        given = filters.detach().cpu()
        kind = str(given.dtype).removeprefix("torch.")
        stack = (given.double() if given.is_floating_point() else given).numpy()
    else:
        stack = np.asarray(filters)
        kind = stack.dtype.name
    if stack.dtype.kind not in "fiu" and not kind.startswith(("bfloat", "float")):
        raise KeyFiltersError(f"expected filters of real numbers, got {kind}")
    if stack.ndim != 3:
        raise KeyFiltersError(f"expected filters of shape (n, k_y, k_x), got {stack.shape}")
    if not has_models((stack.shape[1], stack.shape[2])):
        raise KeyFiltersError(
            f"expected windows with at least 3 taps along one side, got {extent(stack.shape[1:])}, "
            "in which the idealised filters cannot be told apart"
        )
    return stack.astype(np.float64)
