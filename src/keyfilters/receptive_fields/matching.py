"""Explaining every filter of a bank by the best idealised receptive field."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.bank import FilterBank, flaws
from keyfilters.errors import KeyFiltersError
from keyfilters.nulls import null_units
from keyfilters.receptive_fields.families import FAMILIES, FREE
from keyfilters.receptive_fields.general_solver import fit_general, parameter_grid
from keyfilters.receptive_fields.models import COLUMNS
from keyfilters.receptive_fields.separable_solver import ORDER_2, fit_separable, starts
from keyfilters.receptive_fields.significance import choose_null, significance
from keyfilters.scalespace import centred_unit
from keyfilters.threads import one_thread

__all__ = ["match"]

SEPARABLE = tuple(f for f in FAMILIES if f.name.startswith("x:"))
# The free families contain the diagonal ones.
GENERAL = tuple(
    f
    for f in (*FAMILIES, *FREE)
    if f not in SEPARABLE and not f.name.startswith(("diagonal edge", "diagonal second"))
)
REFINED = {"separable": 3, "general": 2}  # candidates per filter that the solvers refine
WORTH_MENTION = 2.0  # difference of the criterion below which the simpler family is preferred
NULL_DRAWS = 1000
ENTRIES = 2**22  # of a matrix of a chunk of filters, so that large windows fit into memory
FLOOR = 1e-5  # of the unexplained share; below it lies what rounding in float32 leaves


@one_thread()
def match(
    filters: NDArray[Any] | Tensor,
    *,
    families: str = "all",
    null: str | None = "auto",
    bank: FilterBank | None = None,
    device: str = "cpu",
    chunk: int = 4096,
    null_draws: int = NULL_DRAWS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Find the idealised filter that explains each filter best: ``f ≈ amplitude · model + offset``.

    Every family is scored on a grid of scales by products of matrices; for the best few of each
    filter the parameters are refined by damped Gauss–Newton steps, amplitude and offset in closed
    form. Families differ in freedom, so the winner is chosen by the Bayesian information criterion
    ``N ln(1 - r²) + p ln N`` over the N taps, with p parameters (amplitude and offset included):
    the families are not nested, so likelihood ratios do not apply, and the criterion asks a further
    parameter to explain what N taps of noise would not. Among families that differ by less than 2,
    "not worth more than a bare mention", the simplest wins. What a family so chosen reaches by
    chance is measured: null filters are matched in the same way, and the p-value is the share of
    them that reach the same r², see `keyfilters.receptive_fields.significance`. Trained filters are
    smooth, so that the null has their tap covariance where there are filters enough to know it.

    Args:
        filters: ``(n, k_y, k_x)`` of any real type and scale, both sides odd and at least 3.
        families: ``"all"``, or ``"separable"`` for the 25 pairs of operators of order 0 to 2.
        null: kind of the null filters, see `keyfilters.null_bank`; ``"auto"`` for covariance where
            a bank or at least five filters a tap are given, else white; None leaves p and q out.
        bank: whose filters of this size the null is made from; None for the filters given.
        device: where to compute.
        chunk: filters at a time, fewer where the window is large.
        null_draws: number of null filters; 0 leaves p and q out.
        seed: of the null filters.
        progress: called with the number of filters done and in all.

    Returns:
        A frame with one row a filter: family, kind, sigma_x, sigma_y (taps), second (what other
        scale or strength the family has), angle (radians counter-clockwise from x; sigma_x is then
        the scale along it), amplitude (of the model as rendered), offset (per tap), r2, parameters
        (their number, amplitude and offset included), p, q (its false-discovery rate over the
        filters given), p_from (``"count"``, ``"tail"`` or ``"floor"``), null (its kind), and flaw:
        ``"constant"``, ``"dead"`` (zero) or ``"non-finite"`` for a filter without a shape, whose
        other columns are empty.

    Raises:
        KeyFiltersError: wrong shape, even or too small sides, unknown families or null, a bank
            without filters of this size.

    >>> from keyfilters.receptive_fields.families import family
    >>> edge = family("x:d y:0").render(torch.tensor([[0.8, 1.1]]), (7, 7))
    >>> match(-3 * edge + 0.5)[["family", "sigma_x", "sigma_y", "amplitude", "offset"]].round(2)
        family  sigma_x  sigma_y  amplitude  offset
    0  x:d y:0      0.8      1.1       -3.0     0.5
    """
    stack = _checked(filters)
    if families not in ("all", "separable"):
        raise KeyFiltersError(f"families must be 'all' or 'separable', got {families!r}")
    flaw = flaws(stack, dead_below=0.0)  # whatever the scale
    usable = np.flatnonzero(flaw == "")
    columns = {name: np.full(len(stack), np.nan) for name in _NUMBERS}
    columns["family"] = np.full(len(stack), -1.0)
    # Rotated forms are drawn from about (4.5 k)² / 2 frequencies.
    chunk = max(1, min(chunk, ENTRIES // (10 * max(stack.shape[1:]) ** 2)))
    for start in range(0, len(usable), chunk):
        rows = usable[start : start + chunk]
        part, mean, scale = _centred(stack[rows])
        found = _match_chunk(torch.as_tensor(part, dtype=torch.float32, device=device), families)
        for name, values in found.items():
            columns[name][rows] = values.double().cpu().numpy()
        columns["amplitude"][rows] *= scale
        columns["offset"][rows] = columns["offset"][rows] * scale + mean
        if progress is not None:
            progress(min(start + chunk, len(usable)), len(usable))
    number = columns.pop("family").astype(int)
    known = (*SEPARABLE, *GENERAL)
    table = pd.DataFrame(
        {
            "family": [known[i].name if i >= 0 else "" for i in number],
            "kind": [known[i].kind if i >= 0 else "" for i in number],
            **columns,
        }
    )
    if null is not None and null_draws:
        null_r2, kind = _null_r2(stack[usable], bank, null, families, null_draws, seed, device)
        table = pd.concat([table, significance(table["r2"].to_numpy(), null_r2, kind)], axis=1)
    return table.assign(flaw=flaw)


_NUMBERS = ("sigma_x", "sigma_y", "second", "angle", "amplitude", "offset", "r2", "parameters")


def _match_chunk(filters: Tensor, families: str) -> dict[str, Tensor]:
    """Match filters that have a shape: columns as ``(n,)`` tensors."""
    size = (filters.shape[1], filters.shape[2])
    taps = size[0] * size[1]
    count = len(filters)
    shares, start_x, start_y = starts(filters)
    begin = torch.stack([start_x.sqrt(), start_y.sqrt()], dim=2)  # (n, families, parameters)
    if families == "all":
        begin = torch.nn.functional.pad(begin, (0, 1))
        for atoms, grid in _general_atoms(size, filters.device):
            best, where = _best_on_grid(filters, atoms)
            shares = torch.cat([shares, best[:, None]], dim=1)
            begin = torch.cat([begin, grid[where][:, None]], dim=1)
    freedom = _freedom(families).to(filters)
    # Refine what the criterion likes best on the grid.
    on_grid = _criterion(shares, freedom, taps)
    groups = [(slice(None, len(SEPARABLE)), "separable"), (slice(len(SEPARABLE), None), "general")]
    candidates = torch.cat(
        [
            on_grid[:, part].topk(REFINED[name], dim=1, largest=False).indices + (part.start or 0)
            for part, name in groups[: 1 if families == "separable" else 2]
        ],
        dim=1,
    )
    rows = torch.arange(count, device=filters.device)
    fits = []
    for family in candidates.T:
        fit = _refine(filters, family, begin[rows, family])
        fits.append(fit | {"family": family.to(filters), "parameters": freedom[family]})
    stacked = {name: torch.stack([fit[name] for fit in fits], dim=1) for name in fits[0]}
    criterion = _criterion(stacked["r2"], stacked["parameters"], taps)
    as_good = criterion <= criterion.min(1, keepdim=True).values + WORTH_MENTION
    simplicity = torch.where(as_good, _ranks(families).to(filters)[candidates], math.inf)
    simplest = simplicity == simplicity.min(1, keepdim=True).values
    chosen = torch.where(simplest, criterion, math.inf).argmin(1)
    return {name: values[rows, chosen] for name, values in stacked.items()}


def _criterion(r2: Tensor, freedom: Tensor, taps: int) -> Tensor:
    """Bayesian information criterion up to a constant; smaller is better."""
    return taps * torch.log((1 - r2).clamp_min(FLOOR)) + freedom * math.log(taps)


def _freedom(families: str) -> Tensor:
    """Number of parameters of every family, amplitude and offset included."""
    chosen = SEPARABLE if families == "separable" else (*SEPARABLE, *GENERAL)
    return torch.tensor([2 + len(family.parameters) for family in chosen])


def _ranks(families: str) -> Tensor:
    """Simplicity of every family, the simplest first."""
    chosen = SEPARABLE if families == "separable" else (*SEPARABLE, *GENERAL)
    return torch.tensor([family.rank for family in chosen])


def _refine(filters: Tensor, family: Tensor, start: Tensor) -> dict[str, Tensor]:
    """Fit to each filter the family given for it, from the parameters given."""
    result = {name: torch.full_like(start[:, 0], math.nan) for name in _NUMBERS[:-1]}
    rows = (family < len(SEPARABLE)).nonzero()[:, 0]
    if len(rows):
        operator_x, operator_y = family[rows] // len(ORDER_2), family[rows] % len(ORDER_2)
        variances = start[rows, :2] ** 2
        fit = fit_separable(filters[rows], operator_x, operator_y, variances[:, 0], variances[:, 1])
        result["sigma_x"][rows], result["sigma_y"][rows] = (
            fit.variance_x.sqrt(),
            fit.variance_y.sqrt(),
        )
        for name in ("amplitude", "offset", "r2"):
            result[name][rows] = getattr(fit, name)
    for number in family[family >= len(SEPARABLE)].unique().tolist():
        rows = (family == number).nonzero()[:, 0]
        form = GENERAL[number - len(SEPARABLE)]
        general = fit_general(form, filters[rows], start[rows, : len(form.parameters)])
        for name, value in zip(form.parameters, general.parameters.T, strict=True):
            result[COLUMNS[name]][rows] = value.to(filters)
        result["sigma_y"][rows] = result["sigma_x"][rows]
        for name in ("amplitude", "offset", "r2"):
            result[name][rows] = getattr(general, name).to(filters)
    return result


def _best_on_grid(filters: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Largest explained share among unit atoms ``(A, taps)``, and which atom reaches it."""
    flat = filters.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    cosine, where = (flat @ atoms.T).abs().max(1)
    return cosine**2 / (flat**2).sum(1).clamp_min(torch.finfo(flat.dtype).tiny), where


@lru_cache(maxsize=8)
def _general_atoms(
    size: tuple[int, int], device: torch.device
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Unit atoms of every general family on its grid, with three parameters, padded by 0."""
    grids = []
    for family in GENERAL:
        parameters = parameter_grid(family, size)
        flat = family.render(parameters, size).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        norm = flat.norm(dim=1, keepdim=True)
        shown = (norm > 1e-6) & (min(size) >= family.smallest)
        unit = torch.where(shown, flat / norm, torch.zeros_like(flat))
        padded = torch.nn.functional.pad(parameters, (0, 3 - parameters.shape[1]))
        grids.append((unit.float().to(device), padded.float().to(device)))
    return tuple(grids)


def _null_r2(
    filters: NDArray[np.floating[Any]],
    bank: FilterBank | None,
    null: str,
    families: str,
    draws: int,
    seed: int,
    device: str,
) -> tuple[NDArray[np.float64], str]:
    """Explained shares of null filters, matched in the same way, and the kind of null."""
    size = (filters.shape[1], filters.shape[2])
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
    """Return filters less their mean, divided by their scale, a power of two; mean and scale."""
    scale = 2.0 ** np.clip(np.frexp(np.abs(stack).max((1, 2)))[1], -1000, 1000)
    unit = stack / scale[:, None, None]  # exactly, so that no square overflows or vanishes
    mean = unit.mean((1, 2))
    unit -= mean[:, None, None]
    spread = 2.0 ** np.frexp(np.abs(unit).max((1, 2)))[1]
    return unit / spread[:, None, None], mean * scale, spread * scale


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
    if min(stack.shape[1:]) < 3 or any(k % 2 == 0 for k in stack.shape[1:]):
        raise KeyFiltersError(
            f"expected windows with odd sides of at least 3 taps, got {stack.shape[1]}×"
            f"{stack.shape[2]}; the idealised filters are centred on a tap along both axes"
        )
    return stack.astype(np.float64)
