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

from keyfilters.bank import flaws
from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields.families import FAMILIES, FREE
from keyfilters.receptive_fields.general_solver import fit_general, parameter_grid
from keyfilters.receptive_fields.separable_solver import ORDER_2, fit_separable, starts

__all__ = ["match"]

SEPARABLE = tuple(f for f in FAMILIES if f.name.startswith("x:"))
# The free families contain the diagonal ones.
GENERAL = tuple(
    f
    for f in (*FAMILIES, *FREE)
    if f not in SEPARABLE and not f.name.startswith(("diagonal edge", "diagonal second"))
)
REFINED = {"separable": 3, "all": 4}  # candidates per filter that the solver refines
WORTH_MENTION = 2.0  # difference of the criterion below which the simpler family is preferred
NULL_DRAWS = 2000
FLOOR = 1e-7  # of the unexplained share, below the precision of float32


def match(
    filters: NDArray[Any] | Tensor,
    *,
    families: str = "all",
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
    chance is measured: the p-value is the share of Gaussian random filters of this size that reach
    the same r² in the same way, and q its false-discovery rate over the filters given
    (Benjamini–Hochberg).

    Args:
        filters: ``(n, k_y, k_x)``, both sides odd and at least 3.
        families: ``"all"``, or ``"separable"`` for the 25 pairs of operators of order 0 to 2.
        device: where to compute.
        chunk: filters at a time.
        null_draws: random filters for the p-values; 0 leaves p and q out.
        seed: of the random filters.
        progress: called with the number of filters done and in all.

    Returns:
        A frame with one row a filter: family, kind, sigma_x, sigma_y (taps), second (the family's
        second parameter, such as an angle in radians), amplitude (of the model as rendered), offset
        (per tap), r2, parameters (their number), p, q, and flaw: ``"constant"``, ``"dead"``
        (zero) or ``"non-finite"`` for a filter without a shape, whose other columns are empty.

    Raises:
        KeyFiltersError: wrong shape, even or too small sides, unknown families.

    >>> from keyfilters.receptive_fields.families import family
    >>> edge = family("x:d y:0").render(torch.tensor([0.8]), torch.tensor([1.1]), (7, 7))
    >>> match(-3 * edge + 0.5)[["family", "sigma_x", "sigma_y", "amplitude", "offset"]].round(2)
        family  sigma_x  sigma_y  amplitude  offset
    0  x:d y:0      0.8      1.1       -3.0     0.5
    """
    stack = _checked(filters)
    if families not in ("all", "separable"):
        raise KeyFiltersError(f"families must be 'all' or 'separable', got {families!r}")
    size = (stack.shape[1], stack.shape[2])
    flaw = flaws(stack, dead_below=0.0)  # whatever the scale
    usable = np.flatnonzero(flaw == "")
    columns = {name: np.full(len(stack), np.nan) for name in _NUMBERS}
    columns["family"] = np.full(len(stack), -1.0)
    for start in range(0, len(usable), chunk):
        rows = usable[start : start + chunk]
        part = torch.as_tensor(stack[rows], dtype=torch.float32, device=device)
        for name, values in _match_chunk(part, families).items():
            columns[name][rows] = values.double().cpu().numpy()
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
    if null_draws:
        null = _null_r2(size, families, null_draws, seed)
        reached = len(null) - np.searchsorted(null, table["r2"].to_numpy()[usable], side="left")
        p = np.full(len(stack), np.nan)
        p[usable] = (1 + reached) / (1 + len(null))
        table["p"] = p
        table["q"] = _false_discovery_rate(p)
    return table.assign(flaw=flaw)


_NUMBERS = ("sigma_x", "sigma_y", "second", "amplitude", "offset", "r2", "parameters")


def _match_chunk(filters: Tensor, families: str) -> dict[str, Tensor]:
    """Match filters that have a shape: columns as ``(n,)`` tensors."""
    size = (filters.shape[1], filters.shape[2])
    taps = size[0] * size[1]
    count = len(filters)
    on_grid, start_x, start_y = starts(filters)
    share, first, second = [on_grid], [start_x.sqrt()], [start_y.sqrt()]
    if families == "all":
        for atoms, grid_first, grid_second in _general_atoms(size, filters.device):
            best, where = _best_on_grid(filters, atoms)
            share.append(best[:, None])
            first.append(grid_first[where][:, None])
            second.append(grid_second[where][:, None])
    shares, firsts, seconds = (torch.cat(x, dim=1) for x in (share, first, second))
    freedom = _freedom(families).to(filters)
    # Refine what the criterion likes best on the grid.
    candidates = (
        _criterion(shares, freedom, taps).topk(REFINED[families], dim=1, largest=False).indices
    )
    rows = torch.arange(count, device=filters.device)
    fits = []
    for family in candidates.T:
        fit = _refine(filters, family, firsts[rows, family], seconds[rows, family])
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
    return torch.tensor([4 if family.second else 3 for family in chosen])


def _ranks(families: str) -> Tensor:
    """Simplicity of every family, the simplest first."""
    chosen = SEPARABLE if families == "separable" else (*SEPARABLE, *GENERAL)
    return torch.tensor([family.rank for family in chosen])


def _refine(filters: Tensor, family: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Fit to each filter the family given for it, from the parameters given."""
    names = ("sigma_x", "sigma_y", "second", "amplitude", "offset", "r2")
    result = {name: torch.full_like(first, math.nan) for name in names}
    rows = (family < len(SEPARABLE)).nonzero()[:, 0]
    if len(rows):
        operator_x, operator_y = family[rows] // len(ORDER_2), family[rows] % len(ORDER_2)
        fit = fit_separable(
            filters[rows], operator_x, operator_y, first[rows] ** 2, second[rows] ** 2
        )
        sigma_x, sigma_y = fit.variance_x.sqrt(), fit.variance_y.sqrt()
        none = torch.full_like(sigma_x, math.nan)
        values = (sigma_x, sigma_y, none, fit.amplitude, fit.offset, fit.r2)
        for name, value in zip(names, values, strict=True):
            result[name][rows] = value
    for number in family[family >= len(SEPARABLE)].unique().tolist():
        rows = (family == number).nonzero()[:, 0]
        general = fit_general(
            GENERAL[number - len(SEPARABLE)], filters[rows], first[rows], second[rows]
        )
        parameters = (general.first, general.first, general.second)
        closed = (general.amplitude, general.offset, general.r2)
        for name, value in zip(names, (*parameters, *closed), strict=True):
            result[name][rows] = value.to(filters)
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
) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Unit atoms of every general family on its grid, with the parameters."""
    grids = []
    for family in GENERAL:
        first, second = parameter_grid(family, size)
        flat = family.render(first, second, size).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        norm = flat.norm(dim=1, keepdim=True)
        unit = torch.where(norm > 1e-6, flat / norm, torch.zeros_like(flat))
        grids.append(tuple(x.float().to(device) for x in (unit, first, second)))
    return tuple(grids)  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def _null_r2(size: tuple[int, int], families: str, draws: int, seed: int) -> NDArray[np.float64]:
    """Sorted r² that Gaussian random filters reach in the same way."""
    random = np.random.default_rng(seed).standard_normal((draws, *size))
    return np.sort(match(random, families=families, null_draws=0)["r2"].to_numpy())


def _false_discovery_rate(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini–Hochberg q-values of the p-values that are not NaN."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _checked(filters: NDArray[Any] | Tensor) -> NDArray[np.floating[Any]]:
    stack = filters.detach().cpu().numpy() if isinstance(filters, Tensor) else np.asarray(filters)
    if stack.ndim != 3:
        raise KeyFiltersError(f"expected filters of shape (n, k_y, k_x), got {stack.shape}")
    if min(stack.shape[1:]) < 3 or any(k % 2 == 0 for k in stack.shape[1:]):
        raise KeyFiltersError(
            f"expected windows with odd sides of at least 3 taps, got {stack.shape[1]}×"
            f"{stack.shape[2]}; the idealised filters are centred on a tap along both axes"
        )
    return stack
