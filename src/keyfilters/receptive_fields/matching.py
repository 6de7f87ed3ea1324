"""Explaining every filter of a bank by the best idealised receptive field.

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
from collections.abc import Callable, Sequence
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
from keyfilters.receptive_fields.families import MATCHED, in_window
from keyfilters.receptive_fields.forms import Family
from keyfilters.receptive_fields.search import NUMBERS, search, separable_count
from keyfilters.receptive_fields.significance import choose_null, significance
from keyfilters.receptive_fields.tables import PART, make_tables
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.seeds import child_seed
from keyfilters.sizes import extent
from keyfilters.threads import in_parts, one_thread, workers

__all__ = ["has_models", "match"]

NULL_DRAWS = 1000
ENTRIES = 2**23  # numbers of a large matrix of filters that are matched together, about


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
        forms = forms[: separable_count(forms)]
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
    columns = {name: np.empty(len(filters)) for name in ("family", *NUMBERS)}
    most = max(8, ENTRIES // (10 * max(size) ** 2))
    # Starts of parts are multiples of it, whatever the chunk; those of callers too (columns.GRAIN).
    unit = min(PART, 2 ** (most.bit_length() - 1))
    even = math.ceil(len(filters) / (workers() * unit))
    part = max(1, min(chunk // unit, most // unit, even)) * unit
    lock, done = Lock(), 0

    def work(rows: slice) -> None:
        nonlocal done
        units, mean, norm = _centred(filters[rows])
        found = search(torch.from_numpy(units).to(device), unit, size, forms)
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
