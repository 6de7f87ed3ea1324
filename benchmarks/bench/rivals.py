"""What one would use instead: pyscsp's kernels on a grid or under SciPy's optimisers, and k-means.

The kernels are those of pyscsp (Lindeberg's own toolbox), the idealised forms the 25 pairs of
operators of order 0 to 2 along x and y. Every function returns how much of the filters it explains.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
TAPS = 7
MASKS = {"0": [1.0], "d": [0.5, 0.0, -0.5], "d+": [1.0, -1.0, 0.0], "d-": [0.0, 1.0, -1.0],
         "dd": [1.0, -2.0, 1.0]}  # fmt: skip
PAIRS = list(product(MASKS, MASKS))
SCALES = np.linspace(0.2, 3.0, 20)
EPSILON = 1e-8  # relative truncation error of pyscsp, its default


def kernel(mask: str, sigma: float, taps: int = TAPS) -> Array:
    """Return the discrete Gaussian of pyscsp, differentiated, in a window of so many taps."""
    from pyscsp.discscsp import make1Ddiscgaussfilter

    smooth = np.convolve(np.pad(make1Ddiscgaussfilter(sigma, EPSILON, 1), taps), MASKS[mask])
    start = (len(smooth) - taps) // 2
    return smooth[start : start + taps]


def atom(pair: tuple[str, str], sigma_x: float, sigma_y: float) -> Array:
    """Return a separable filter ``(49,)``, centred and of unit norm."""
    drawn = np.outer(kernel(pair[1], sigma_y), kernel(pair[0], sigma_x)).ravel()
    drawn = drawn - drawn.mean()
    return drawn / max(float(np.linalg.norm(drawn)), 1e-12)


def dictionary(scales: Array = SCALES) -> Array:
    """Return all pairs at all scales ``(25 · scales², 49)``."""
    drawn = {mask: np.stack([kernel(mask, s) for s in scales]) for mask in MASKS}
    atoms = [
        np.einsum("iy,jx->ijyx", drawn[y], drawn[x]).reshape(-1, TAPS * TAPS) for x, y in PAIRS
    ]
    flat = np.concatenate(atoms)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def grid_search(unit: Array) -> Array:
    """Return r² of the best atom of every filter ``(n, 49)``: a Python loop over the filters."""
    atoms = dictionary().astype(unit.dtype)
    return np.array([float(np.abs(atoms @ row).max()) ** 2 for row in unit])


def scipy_search(unit: Array) -> Array:
    """Return r² of the best pair of every filter, its scales found by SciPy from (0.8, 0.8)."""
    from scipy.optimize import minimize

    def best(pair: tuple[str, str], row: Array) -> float:
        def missed(point: Array) -> float:
            return 1 - float(atom(pair, *np.abs(point)) @ row) ** 2

        options = {"maxfev": 60, "xatol": 1e-3, "fatol": 1e-5}
        found = minimize(missed, [0.8, 0.8], method="Nelder-Mead", options=options)
        return 1 - float(found.fun)

    return np.array([max(best(pair, row.astype(float)) for pair in PAIRS) for row in unit])


def one_scale_search(filters: Array, pairs: list[tuple[str, str]]) -> float:
    """Fit (σx, σy) of the pair named for each filter; return the mean r²."""
    from scipy.optimize import minimize

    found = []
    for row, pair in zip(filters, pairs, strict=True):

        def missed(point: Array, row: Array = row, pair: tuple[str, str] = pair) -> float:
            return 1 - float(atom(pair, *np.abs(point)) @ row) ** 2

        found.append(1 - minimize(missed, [0.8, 0.8], method="Nelder-Mead").fun)
    return float(np.mean(found))


def explained(unit: Array, centres: Array) -> float:
    """Return the mean over the filters of the largest squared cosine with a centre."""
    norm = np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    return float((((unit @ (centres / norm).T) ** 2).max(1)).mean())


def kmeans_ways(unit: Array, count: int, seed: int = 0) -> dict[str, Callable[[], float]]:
    """Return the k-means of scikit-learn and of faiss: each learns and says how much it explains.

    faiss and KMeans run as often from other starts (four times); all are spherical only as far as
    the filters have unit norm.
    """
    import faiss
    from sklearn.cluster import KMeans, MiniBatchKMeans

    def sklearn() -> float:
        return explained(
            unit, KMeans(count, n_init=4, random_state=seed).fit(unit).cluster_centers_
        )

    def minibatch() -> float:
        fitted = MiniBatchKMeans(count, n_init=4, random_state=seed).fit(unit)
        return explained(unit, fitted.cluster_centers_)

    def with_faiss() -> float:
        found = faiss.Kmeans(
            unit.shape[1], count, niter=25, nredo=4, seed=seed, spherical=True,
            min_points_per_centroid=1, max_points_per_centroid=len(unit),
        )  # fmt: skip
        found.train(np.ascontiguousarray(unit, dtype=np.float32))
        return explained(unit, found.centroids)

    return {
        "scikit-learn KMeans, 4 starts": sklearn,
        "scikit-learn MiniBatchKMeans, 4 starts": minibatch,
        "faiss Kmeans, 4 starts": with_faiss,
    }
