"""Matching every filter, and fitting a few, beside a dictionary, a grid search and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

import keyfilters as kf
from keyfilters.scalespace import discrete_gaussian

from . import rivals
from .filters import noise, real, smooth, unit_rows
from .runner import Arm, Comparison

ATOMS = 4096
BLOCK = 1024  # filters of one product, which stays in the cache: quicker than more or fewer
ON_GRID, BY_SCIPY = 200, 6  # filters that the slow ways are given
PASS = f"one pass |X·D|, {ATOMS:,} atoms"
PAIR_OF = {"dx": ("d", "0"), "dy": ("0", "d"), "dxx": ("dd", "0"), "dyy": ("0", "dd"),
           "dxy": ("d", "d"), "smooth": ("0", "0")}  # fmt: skip


def dictionary_pass(filters: NDArray[np.float32], atoms: int = ATOMS) -> Callable[[], None]:
    """Return what finds for every filter the atom of a dictionary with the largest product."""
    rows = torch.from_numpy(filters).flatten(1)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(atoms, rows.shape[1], generator=generator)
    transposed = torch.nn.functional.normalize(drawn).T.contiguous()

    def run() -> None:
        for part in rows.split(BLOCK):
            (part @ transposed).abs_().argmax(1)

    return run


def comparisons(scale: float) -> Iterator[Comparison]:
    """Yield match on drawn and on real filters, then what serves single filters."""
    count = max(500, round(100_000 * scale))
    yield _against_pass(f"{count:,} drawn 7×7", smooth(count), slow=True)
    yield _against_pass(f"{count:,} of white noise, 7×7", noise(count))
    for size in (7, 5):
        if (trained := real(size)) is not None:
            repeated = np.resize(trained, (count, size, size))
            name = f"{len(trained):,} trained {size}×{size}, repeated to {count:,}"
            yield _against_pass(name, repeated)
    yield _against_pass(
        f"{count:,} drawn 7×7, separable families only", smooth(count), families="separable"
    )
    yield _few()
    yield _kernels(max(100, round(2000 * scale)))


def _against_pass(
    name: str, filters: NDArray[np.float32], *, families: str = "all", slow: bool = False
) -> Comparison:
    unit = unit_rows(filters)

    def ours() -> float:
        found = kf.match(filters, families=families, null=None)
        return float(found["r2"].to_numpy()[:BY_SCIPY].mean())

    ways = (Arm(PASS, dictionary_pass(filters), len(filters)),)
    if slow:
        on_grid = Arm(
            "grid of 20 × 20 scales of pyscsp, filter by filter",
            lambda: float(rivals.grid_search(unit[:ON_GRID])[:BY_SCIPY].mean()),
            ON_GRID,
        )
        by_scipy = Arm(
            "SciPy's Nelder–Mead on pyscsp kernels, filter by filter",
            lambda: float(rivals.scipy_search(unit[:BY_SCIPY]).mean()),
            BY_SCIPY,
        )
        ways += (on_grid, by_scipy)
    limits = {PASS: 3.0} if families == "all" else {}
    quality = f"r², mean of {BY_SCIPY} filters" if slow else ""
    return Comparison(
        "match", name, "filter", Arm("kf.match", ours, len(filters)), ways, limits, quality=quality
    )


def _few() -> Comparison:
    """Fit a few prototypes whose operators are known, as the published analysis does."""
    names = list(PAIR_OF)
    planted = np.stack([rivals.atom(PAIR_OF[n], 0.9, 0.7).reshape(7, 7) for n in names])
    filters = planted + 0.02 * noise(len(names))

    def ours(method: str) -> Callable[[], object]:
        return lambda: kf.fit_idealized(filters, names, method)

    unit = unit_rows(filters)
    scipy = Arm(
        "SciPy's Nelder–Mead on pyscsp kernels",
        lambda: rivals.one_scale_search(unit, [PAIR_OF[n] for n in names]),
        len(names),
    )
    closed = Arm("kf.fit_idealized, method A", ours("A"), len(names))
    free = Arm("kf.fit_idealized, method D1", ours("D1"), len(names))
    own = Arm("kf.fit_idealized, method B", ours("B"), len(names))
    return Comparison("fitting", "six prototypes of 7×7", "filter", own, (scipy, closed, free))


def _kernels(count: int) -> Comparison:
    """Draw discrete Gaussian kernels of many scales."""
    sigmas = np.linspace(0.3, 3.0, count)
    variances = torch.from_numpy(sigmas**2)
    return Comparison(
        "kernels",
        "discrete Gaussians in 7 taps",
        "kernel",
        Arm("discrete_gaussian", lambda: discrete_gaussian(variances, 3), count),
        (Arm("pyscsp, one by one", lambda: [rivals.kernel("0", s) for s in sigmas], count),),
    )
