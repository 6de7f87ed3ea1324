"""Which key is nearest to each of millions of filters, quickly and always with the same bits.

Products of matrices round as their shape, the alignment of memory and the number of threads make
them. Here they only choose the key, where no rounding can change the choice; where one could, the
keys are compared again in float64. All numbers returned are sums in a fixed order, tap by tap of
single filters, so that they depend on nothing but the filter and the key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.receptive_fields import published_in
from keyfilters.sizes import Window, as_size, extent
from keyfilters.threads import in_parts

__all__ = ["Assignment", "assign", "checked_dtype", "reconstruct"]

TIED = 64  # products with two keys that differ by less than so many roundings of ‖w‖ are equal
BLOCK = 8192  # filters that are summed at once, which bounds the memory


class Assignment(NamedTuple):
    """Key, factor, constant and residual of n filters: ``w ≈ a · keys.filters[index] + b``."""

    index: NDArray[np.int64]  # type: ignore[assignment]  # tuples have a method of this name
    a: NDArray[np.floating[Any]]
    b: NDArray[np.floating[Any]]
    residual: NDArray[np.floating[Any]]


def assign(
    w: NDArray[Any] | Tensor, keys: Tensor, dtype: torch.dtype, chunk: int, device: torch.device
) -> Assignment:
    """Assign every filter to a key; see `keyfilters.keyset.KeySet.assign`.

    Args:
        w: ``(n, k_y, k_x)``.
        keys: ``(K, taps)`` float64, centred, of unit norm.
        dtype: of the result, float32 or float64.
        chunk: filters at a time in every thread.
        device: where to compute.
    """
    # Graphics cards, and processors if so asked, may round factors of float32 products to ten bits.
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    working = dtype if exact else torch.float64
    place = device if device.type == "cuda" else torch.device("cpu")
    wide = dtype == torch.float64
    quick, precise = keys.to(device, working), keys.to(place)
    index = torch.empty(len(w), dtype=torch.int64)
    a, b, residual = torch.empty(3, len(w), dtype=dtype)

    def work(rows: slice) -> None:
        part = _rows(w, rows, working)
        chosen, sure = _choose(part.to(device), quick)
        for start in range(0, len(part), BLOCK):
            block = slice(start, start + BLOCK)
            found = _measure(part[block], chosen[block], sure[block], precise, wide)
            for column, values in zip((index, a, b, residual), found, strict=True):
                column[rows][block] = values

    in_parts(work, len(w), chunk)
    return Assignment(index.numpy(), a.numpy(), b.numpy(), residual.numpy())


def checked_dtype(w: NDArray[Any] | Tensor, window: Window) -> torch.dtype:
    """Return the dtype in which filters are assigned to keys of a window, float32 or float64.

    Raises:
        KeyFiltersError: the filters have another shape or size, or are not of real numbers.
    """
    name = w.dtype.name if isinstance(w, np.ndarray) else str(w.dtype).removeprefix("torch.")
    k_y, k_x = window
    if w.ndim != 3 or not name.startswith(("float", "bfloat", "int", "uint")):
        raise KeyFiltersError(
            f"expected filters as real numbers of shape (n, {k_y}, {k_x}), got {name} of "
            f"shape {tuple(w.shape)}"
        )
    own = (int(w.shape[1]), int(w.shape[2]))
    if own != window:
        drawn = f', such as KeySet.published("lindeberg2026-B", size={as_size(own)})'
        raise KeyFiltersError(
            f"these keys are {extent(window)}, but the filters are {extent(own)}; take "
            f"keys of their size{drawn if published_in(own) else ''}"
        )
    short = ("float32", "float16", "bfloat16")
    return torch.float32 if name in short or name.startswith("float8") else torch.float64


def reconstruct(
    keys: NDArray[np.float64], index: NDArray[Any], a: NDArray[Any], b: NDArray[Any]
) -> NDArray[Any]:
    """Return the filters ``a·x + b``; see `keyfilters.keyset.KeySet.reconstruct`.

    Args:
        keys: ``(K, k_y, k_x)``.
        index: ``(n,)``, −1 for none.
        a: ``(n,)``.
        b: ``(n,)``.
    """
    if index.dtype.kind not in "iu" or index.ndim != 1 or not index.shape == a.shape == b.shape:
        raise KeyFiltersError(
            f"expected n integers and twice n numbers, got {index.dtype} of shape "
            f"{index.shape}, {a.shape} and {b.shape}"
        )
    if len(index) and not -1 <= index.min() <= index.max() < len(keys):
        raise KeyFiltersError(f"no key has number {max(index.max(), index.min(), key=abs)}")
    a = a if a.dtype.kind == "f" else a.astype(np.float64)
    filters = keys.astype(a.dtype)[index]
    filters *= a[:, None, None]
    filters += b.astype(a.dtype)[:, None, None]
    filters[index < 0] = np.nan
    return filters


def _rows(w: NDArray[Any] | Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return some of the filters as ``(m, taps)``."""
    part = w[rows]
    if not isinstance(part, Tensor):
        kind = np.float32 if dtype == torch.float32 else np.float64
        part = torch.from_numpy(np.require(part, kind, ["C", "W", "A"]))  # a copy where needed
    return part.to(dtype).flatten(1)


def _choose(w: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the key of every filter by one product of matrices, and where no rounding matters."""
    precision = torch.finfo(w.dtype)
    products = (keys @ w.T).abs_()
    norm = torch.linalg.vector_norm(w, dim=1)
    # 1 where a key does as well as the best, else 0; their numbers and how many by one product,
    # because a search for positions takes longer than all the rest.
    doubt = (TIED + 2 * w.shape[1]) * precision.eps  # a sum of n products is off by n roundings
    as_good = products.ge_(products.amax(0).sub_(norm, alpha=doubt))
    numbers = torch.arange(len(keys)).to(keys)
    index, many = torch.stack([numbers, torch.ones_like(numbers)]) @ as_good
    least = (precision.tiny / precision.eps) ** 0.5  # below it squares vanish
    sure = (many == 1) & (norm > least) & (norm < precision.max**0.5)  # not so for NaN
    return index.long(), sure


def _measure(
    w: Tensor, index: Tensor, sure: Tensor, keys: Tensor, wide: bool
) -> tuple[Tensor, ...]:
    """Return index, a, b and residual of filters ``(m, taps)``, in float64 and a fixed order.

    Filters that are `wide` have digits of float64, others of float32 at most.
    """
    taps = w.shape[1]
    columns = w.to(keys.device, torch.float64).T.contiguous()
    index, sure = index.to(keys.device), sure.to(keys.device)
    low, high = columns.amin(0), columns.amax(0)
    scale = _power_of_two(torch.maximum(-low, high)) if wide else torch.ones_like(low)
    columns = columns / scale if wide else columns  # so that squares neither overflow nor vanish
    if not bool(sure.all()):
        doubtful = (~sure).nonzero()[:, 0]
        index = index.index_copy(0, doubtful, _compare(columns[:, doubtful], keys))
    key = keys.index_select(0, index).T.contiguous()
    b = _total(columns.clone()) / taps
    if wide:
        columns -= b
        a = _total(key * columns)
        residual = _total(columns.sub_(key.mul_(a)).square_()).sqrt_()
    else:  # twice the digits of the filters: a difference of squares loses none of theirs
        a = _total(key.mul_(columns))
        left = _total(columns.square_()).sub_(b.square().mul_(taps)).sub_(a.square())
        residual = left.clamp_(min=0).sqrt_()
    flat = low == high
    bad = ~(low.isfinite() & high.isfinite())
    index = index.masked_fill(flat, 0).masked_fill(bad, -1)
    a, residual = ((x * scale).masked_fill(flat, 0) for x in (a, residual))
    b = torch.where(flat, low, b * scale)
    return index, *(x.masked_fill(bad, torch.nan) for x in (a, b, residual))


def _compare(columns: Tensor, keys: Tensor) -> Tensor:
    """Return the first of the keys that do best, to rounding, for filters ``(taps, m)``."""
    centred = columns - _total(columns.clone()) / len(columns)
    strength = torch.stack([_total(centred * key[:, None]).abs_() for key in keys])
    norm = _total(columns.square()).sqrt_()
    enough = strength.amax(0) - TIED * torch.finfo(columns.dtype).eps * norm
    return (strength >= enough).byte().argmax(0)


def _total(columns: Tensor) -> Tensor:
    """Sum the rows of ``(rows, m)``, which is overwritten, halves upon halves.

    A reduction of torch or a product of matrices would add in an order of its own.
    """
    rows = len(columns)
    while rows > 1:
        half = rows // 2
        columns[:half] += columns[rows - half : rows]
        rows -= half
    return columns[0]


def _power_of_two(x: Tensor) -> Tensor:
    """Return a power of two near positive numbers, by which division is exact."""
    exponent = torch.frexp(x).exponent.long().clamp_(-1000, 1000)
    return (exponent + 1023).bitwise_left_shift(52).view(torch.float64)
