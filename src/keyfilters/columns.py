"""Columns of tables with millions of rows: texts as numbers of the words that occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["GRAIN", "LARGE", "text_column"]

GRAIN = 1024  # filters that are multiplied together; sums over filters are sums over such grains
LARGE = 2**18  # rows of a table beyond which its texts are categories


def text_column(codes: NDArray[Any], words: Sequence[str]) -> NDArray[np.object_] | pd.Categorical:
    """Return a column of texts: objects, or categories where there are more than `LARGE`.

    Args:
        codes: ``(n,)`` places in `words`.
        words: the texts that occur, each once.

    >>> text_column(np.array([1, 0, 1]), ["edge", "centre"]).tolist()
    ['centre', 'edge', 'centre']
    """
    if len(codes) > LARGE:
        narrow = np.int16 if len(words) < 2**15 else np.int32
        return pd.Categorical.from_codes(np.asarray(codes, narrow), list(words))
    return np.array([*words], dtype=object)[codes]
