"""A dictionary of idealised filters on a grid of scales, for naming and for first guesses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from keyfilters.receptive_fields.families import FAMILIES, Family, formula_in

__all__ = ["Dictionary", "build_dictionary", "first_of_equals"]

ALPHAS = (0.15, 0.3, 0.6, 1.2)  # strength of the surround in the sharpening family


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Idealised filters of one window size.

    Attributes:
        atoms: ``(A, k_y, k_x)`` float32, centred and of unit norm.
        family: ``(A,)`` index into `FAMILIES`.
        parameters: ``(A, 2)`` sigma in taps, and the family's second parameter (NaN where it has
            none).
    """

    atoms: NDArray[np.float32]
    family: NDArray[np.int64]
    parameters: NDArray[np.float64]

    def table(self) -> pd.DataFrame:
        """One row an atom: family, formula, sigma and the second parameter."""
        families = [FAMILIES[i] for i in self.family]
        window = (self.atoms.shape[1], self.atoms.shape[2])
        return pd.DataFrame(
            {
                "family": [f.name for f in families],
                "formula": [formula_in(f.name, window) for f in families],
                "sigma": self.parameters[:, 0],
                "second": self.parameters[:, 1],
            }
        )


def scales(size: tuple[int, int], count: int = 8) -> NDArray[np.float64]:
    """Geometric grid of σ in taps, from nearly an impulse to half the longer side."""
    even = all(k % 2 == 0 for k in size if k > 1)  # whose narrowest form is the mean of two taps
    return np.geomspace(0.5 if even else 0.25, max(size) / 2, count)


@lru_cache(maxsize=16)
def build_dictionary(size: tuple[int, int], count: int = 8) -> Dictionary:
    """Render every family on a grid of scales.

    Args:
        size: window ``(k_y, k_x)``.
        count: number of scales along each of a family's two parameters.

    Returns:
        The dictionary; forms that vanish in this window are left out (an edge along y in one row),
        and so are those that an earlier, simpler family renders identically (to 1e-5 in cosine).

    >>> build_dictionary((5, 5)).atoms.shape[1:]
    (5, 5)
    """
    sigmas = scales(size, count)
    atoms, family, parameters = [], [], []
    forms = {i: form.in_window(size) for i, form in enumerate(FAMILIES)}
    fitting = [(i, form) for i, form in forms.items() if form and min(size) >= form.smallest]
    for index, form in sorted(fitting, key=lambda pair: pair[1].rank):
        grid = _parameter_grid(form, sigmas)
        rendered = form.render(torch.tensor(grid), size)
        flat = rendered.flatten(1)
        centred = (flat - flat.mean(1, keepdim=True)).numpy()
        norm = np.linalg.norm(centred, axis=1)
        shown = norm > 1e-6 * np.linalg.norm(flat.numpy(), axis=1)
        atoms.append(centred[shown] / norm[shown, None])
        family.append(np.full(shown.sum(), index))
        lacking = ((0, 0), (0, 2 - grid.shape[1]))
        parameters.append(np.pad(grid, lacking, constant_values=np.nan)[shown])
    unit = np.concatenate(atoms)
    kept = first_of_equals(unit)
    return Dictionary(
        unit[kept].reshape(-1, *size).astype(np.float32),
        np.concatenate(family)[kept],
        np.concatenate(parameters)[kept],
    )


def _parameter_grid(family: Family, sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    values = {"sigma": sigmas, "sigma_x": sigmas, "sigma_y": sigmas, "alpha": np.array(ALPHAS)}
    if "sigma_long" in family.parameters:
        values |= {"sigma": sigmas[:-2], "sigma_long": sigmas[2:]}
    grid = np.array(list(itertools.product(*(values[name] for name in family.parameters))))
    if "sigma_long" in family.parameters:
        grid = grid[grid[:, 1] > 2 * grid[:, 0]]
    return grid


def first_of_equals(
    unit: NDArray[np.floating], alike: float = 1 - 1e-5, block: int = 512
) -> NDArray[np.int64]:
    """Return, by number, the filters that no earlier one equals up to sign.

    Args:
        unit: ``(A, taps)`` of unit norm.
        alike: absolute cosine above which two are equal.
        block: filters compared at a time.
    """
    repeated = np.zeros(len(unit), dtype=bool)
    for start in range(0, len(unit), block):
        cosine = np.abs(unit[start : start + block] @ unit.T)
        earlier = np.arange(len(unit)) < np.arange(start, start + len(cosine))[:, None]
        repeated[start : start + block] = ((cosine > alike) & earlier).any(axis=1)
    return np.flatnonzero(~repeated)
