"""Products of matrices whose last bit depends on nothing that is computed beside them.

Libraries for linear algebra choose the order of sums by the number of rows, and by where rows lie
in memory. So what is drawn or fitted for many filters at once is computed as many products of one
shape, whose matrices all begin at a cache line.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["aligned", "each_product", "times_table"]

LINE = 64  # bytes of a cache line


def each_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply ``(n, r, k)`` by ``(n, k, w)``, matrix by matrix: ``(n, r, w)``.

    Matrices of more than one row or column must be `aligned`.
    """
    if len(a) == 1:  # PyTorch takes another way with one
        return torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[:1]
    return torch.bmm(a, b)


def times_table(matrices: Tensor, table: Tensor) -> Tensor:
    """Multiply each of ``(n, r, k)`` matrices by a table ``(k, w)``; return ``(n, r, w)``.

    >>> times_table(torch.ones(4, 2, 3), torch.ones(3, 5)).shape
    torch.Size([4, 2, 5])
    """
    wide = aligned(table).expand(len(matrices), -1, -1)
    return each_product(matrices, wide)[..., : table.shape[-1]]


def aligned(rows: Tensor) -> Tensor:
    """Return rows that begin at a cache line, filled up with zeros.

    >>> aligned(torch.ones(2, 3, 25)).shape
    torch.Size([2, 3, 32])
    """
    return pad(rows, (0, -rows.shape[-1] % (LINE // rows.element_size())))
