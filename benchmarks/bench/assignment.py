"""Assigning every filter to its nearest key, beside the product it contains, faiss and a loop."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import keyfilters as kf

from .filters import noise
from .runner import Arm, Comparison

CHUNK = 16384
IN_LOOP = 2000  # filters that the loop is given
PRODUCT = "product and argmax only"


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield assignment to 8 and to 64 keys."""
    filters = noise(max(5000, round(1_000_000 * scale)))
    for keys in (kf.KeySet.published("lindeberg2026-B"), kf.KeySet.random(64)):
        yield _assign(filters, keys)


def _assign(filters: np.ndarray, keys: kf.KeySet) -> Comparison:
    import faiss

    rows = torch.from_numpy(filters).flatten(1)
    flat = keys.filters.reshape(len(keys), -1)
    transposed = torch.tensor(flat, dtype=torch.float32).T.contiguous()
    index = faiss.IndexFlatIP(flat.shape[1])
    index.add(np.concatenate([flat, -flat]).astype(np.float32))  # a key serves either sign

    def product() -> None:
        for part in rows.split(CHUNK):
            (part @ transposed).abs().argmax(1)

    def with_faiss() -> None:  # the factor and the constant are still to be found
        index.search(rows.numpy(), 1)

    def loop() -> None:
        for row in rows[:IN_LOOP].numpy():
            mean = row.mean()
            along = flat @ (row - mean)
            best = int(np.abs(along).argmax())
            np.linalg.norm(row - along[best] * flat[best] - mean)

    return Comparison(
        "assignment",
        f"{len(filters):,} filters of 7×7 to {len(keys)} keys",
        "filter",
        Arm("KeySet.assign", lambda: keys.assign(filters), len(filters)),
        (
            Arm(PRODUCT, product, len(filters)),
            Arm("faiss IndexFlatIP of ±keys", with_faiss, len(filters)),
            Arm("a Python loop with NumPy", loop, IN_LOOP),
        ),
        {PRODUCT: 1.5} if len(keys) == 8 else {},
        rounds=9,
    )
