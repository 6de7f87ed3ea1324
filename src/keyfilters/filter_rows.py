"""Some filters of a bank, of which only those in use are in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.tensor_files import forget_pages

__all__ = ["FilterRows"]


class FilterRows:
    """Filters of one kernel size of a bank, read when they are asked for.

    Args:
        bank: that holds them.
        rows: ``(n,)`` their numbers among all filters of the bank, in order of the layers,
            ascending.

    >>> from keyfilters.bank import FilterBank, Layer
    >>> weight = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    >>> bank = FilterBank([Layer("net", "conv", weight, (1, 1), (1, 1), 0.0)])
    >>> filters = FilterRows(bank, np.array([1]))
    >>> len(filters), filters[:1].shape
    (1, (1, 3, 3))
    """

    def __init__(self, bank: FilterBank, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self._weights = [layer.weight for layer in bank.layers]
        self._ends = np.cumsum([len(weight) for weight in self._weights])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n, k_y, k_x)``; ``(0, 0, 0)`` where there are none."""
        if not len(self.rows):
            return 0, 0, 0
        k_y, k_x = self._weights[int(self.layers_of(self.rows[:1])[0])].shape[1:]
        return len(self.rows), k_y, k_x

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return filters ``(m, k_y, k_x)`` by their places, which must ascend."""
        rows = self.rows[chosen]
        if not len(rows):
            return np.empty((0, *self.shape[1:]), np.float32)
        layers, first = np.unique(self.layers_of(rows), return_index=True)
        parts = []
        for layer, own in zip(layers, np.split(rows, first[1:]), strict=True):
            weight = self._weights[layer]
            own = own - (self._ends[layer] - len(weight))
            whole = own[-1] - own[0] + 1 == len(own)
            parts.append(np.array(weight[own[0] : own[-1] + 1] if whole else weight[own]))
            forget_pages(weight)
        return np.concatenate(parts)

    def layers_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the layer that each row of the bank is in."""
        return np.searchsorted(self._ends, rows, side="right")
