"""Products whose bits depend on nothing beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from keyfilters.scalespace import discrete_gaussian
from keyfilters.scalespace.products import aligned, each_product, times_table

TABLE = torch.randn(48, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gram(x: Tensor) -> Tensor:
    return each_product(aligned(x), aligned(x).mT)


def rows(x: Tensor) -> Tensor:
    return times_table(x, TABLE.to(x))


def vectors(x: Tensor) -> Tensor:
    return torch.linalg.vecdot(x, x[:, :1])


def kernels(x: Tensor) -> Tensor:
    """Kernels of variances up to 60, which need from 64 to 256 nodes."""
    return discrete_gaussian(x[:, 0, :2].abs() * 20, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("work", [rows, gram, vectors, kernels])
def test_neighbours_change_no_bit(work: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.randn(70, 3, 48, dtype=dtype, generator=torch.Generator().manual_seed(0))
    whole = work(x)
    for start in range(9):
        for count in (1, 2, 3, 7, 24, 61):
            part = work(x[start : start + count].clone())
            assert torch.equal(part, whole[start : start + count])


def test_they_are_products() -> None:
    x = torch.randn(5, 3, 48, dtype=torch.float64)
    torch.testing.assert_close(rows(x), x @ TABLE)
    torch.testing.assert_close(gram(x), x @ x.mT)
    torch.testing.assert_close(rows(x[:1]), x[:1] @ TABLE)
    assert rows(x[:0]).shape == (0, 3, 11)
