"""Key filters: a few unit filters x, so that every filter is about a·x + b (babaiee2025quest)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from keyfilters.assignment import Assignment, assign, checked_dtype, reconstruct
from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError
from keyfilters.key_files import read_keys, write_keys
from keyfilters.key_names import parse_key_name
from keyfilters.learned_filters import learn_from_bank
from keyfilters.receptive_fields import (
    PUBLISHED_NAMES,
    match,
    published_filters,
    published_in,
    published_parameters,
)
from keyfilters.receptive_fields.models import render_models
from keyfilters.scalespace.unit import exact_centred_unit, why_unusable
from keyfilters.seeds import checked_seed
from keyfilters.sizes import Size, Window, as_size, as_window, extent

__all__ = ["CONSENSUS", "Assignment", "KeySet"]

CONSENSUS = Path(__file__).parent / "consensus"  # keys that ship with the package


@dataclass(frozen=True, eq=False)
class KeySet:
    """A few keys of one size, centred and of unit norm, and where they come from.

    Args:
        filters: ``(K, k_y, k_x)``, row 0 on top; kept read-only in float64, centred and normalised.
            Filters that are so already, to rounding, keep every bit.
        names: K different names.
        provenance: one sentence, where the keys come from; the part before a colon is shown.
        licence: terms of use, if there are any.
        models: of idealised keys, one row a key: operator, sigma_x, sigma_y (in taps), alpha.

    Raises:
        KeyFiltersError: no keys, keys that are not finite or constant, or names or models that do
            not fit.

    >>> KeySet.published("lindeberg2026-B")
    KeySet(8 keys of 7×7: lindeberg2026-B)
    """

    filters: NDArray[np.float64]
    names: tuple[str, ...]
    provenance: str = ""
    licence: str = ""
    models: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        filters, names = _as_keys(self.filters), tuple(map(str, self.names))
        for what, given in (("names", names), ("rows of models", self.models)):
            if given is not None and len(given) != len(filters):
                raise KeyFiltersError(f"{len(filters)} keys need as many {what}, got {len(given)}")
        for i, (name, flaw) in enumerate(
            zip(names, why_unusable(filters, dead_below=0.0), strict=True)
        ):
            if name in names[:i]:
                raise KeyFiltersError(f"names of keys must differ, but {name!r} stands twice")
            if flaw:
                flaw = "zero" if flaw == "dead" else flaw
                raise KeyFiltersError(f"{name!r} is {flaw}; a key needs finite taps that differ")
        filters = exact_centred_unit(filters)
        filters.flags.writeable = False
        object.__setattr__(self, "filters", filters)
        object.__setattr__(self, "names", names)

    @classmethod
    def from_filters(
        cls,
        filters: ArrayLike | Tensor,
        names: Sequence[str] | None = None,
        provenance: str = "",
        licence: str = "",
    ) -> KeySet:
        """Take filters f as keys: ``(f − mean f) / ‖f − mean f‖₂``.

        Args:
            filters: ``(K, k_y, k_x)``.
            names: K different names; by default ``"key 1"`` and so on.
            provenance: as of `KeySet`.
            licence: as of `KeySet`.

        Raises:
            KeyFiltersError: as `KeySet`.

        >>> KeySet.from_filters([[[3, 1], [1, 3]]]).filters.tolist()
        [[[0.5, -0.5], [-0.5, 0.5]]]
        """
        array = _as_keys(filters)
        names = [f"key {i}" for i in range(1, len(array) + 1)] if names is None else names
        return cls(array, tuple(names), provenance, licence)

    @classmethod
    def published(cls, name: str, size: Size = 7) -> KeySet:
        """Draw the eight idealised keys at their published scales (lindeberg2026modelling).

        The paper's window is 7×7; other windows are ours. One of even side is centred half-way
        between taps, and in one row or column only the keys that vary along it remain, five of
        eight, see `keyfilters.receptive_fields.published_filters`.

        Args:
            name: one of `keyfilters.receptive_fields.PUBLISHED`.
            size: taps k along either side, or ``(k_y, k_x)``.

        Raises:
            KeyFiltersError: unknown name, or a window with a side of 2 taps or of one tap only.

        >>> KeySet.published("lindeberg2026-B", size=(1, 9))
        KeySet(5 keys of 1×9: lindeberg2026-B)
        """
        window = as_window(size)
        models = published_parameters(name).drop(columns="filter")
        name = f"lindeberg2026-{name.removeprefix('lindeberg2026-')}"
        told = f"{name}: idealised models of the eight key filters at their published scales"
        filters, shown = published_filters(name, window), published_in(window)
        names = tuple(PUBLISHED_NAMES[i] for i in shown)
        models = models.iloc[shown].reset_index(drop=True)
        return cls(filters, names, told, models=models)

    @classmethod
    def named(
        cls, name: str, size: Size = 7, seed: int = 0, *, bank: FilterBank | None = None
    ) -> KeySet:
        """Return the keys that a name stands for: on the command line, in recipes, in experiments.

        Args:
            name: ``"lindeberg2026-B"`` or ``"published:lindeberg2026-B"``, a published set;
                ``"consensus"``; ``"random:8"`` (``"random"`` draws 8); ``"lines:32"`` or
                ``"kmeans:32"``, learned from the filters of `bank`; ``"covariance:8"`` or
                ``"phase:8"``, drawn from its null filters (`keyfilters.nulls.NULLS`); or a file of
                keys.
            size: kernel size, k or ``(k_y, k_x)``; a file must hold keys of this size.
            seed: of random, learned and drawn keys.
            bank: filters from which keys are learned or drawn.

        Raises:
            KeyFiltersError: no such keys, none of this size, or no bank to learn them from.

        >>> KeySet.named("random:4", size=5, seed=3)
        KeySet(4 keys of 5×5: random, seed 3)
        """
        window, known = as_window(size), parse_key_name(name)
        if known.kind == "file":
            keys = cls.from_file(name)
            if keys.window != window:
                got = f"{name} holds keys of {extent(keys.window)}"
                raise KeyFiltersError(f"{got}; keys of {extent(window)} are expected")
            return keys
        if known.kind == "consensus":
            return cls.consensus(window)
        if known.kind == "random":
            return cls.random(known.number, window, seed)
        if known.kind == "published":
            return cls.published(known.label, window)
        learned, told = learn_from_bank(bank, window, known.number, known.kind, seed)
        return cls.from_filters(learned, provenance=told)

    @classmethod
    def consensus(cls, size: Size, *, idealised: bool = False) -> KeySet:
        """Return the keys discovered over several models, each counting alike.

        They ship with the package; `provenance` names the models. Those of 7×7 come from one only.

        Args:
            size: kernel size, 3, 5 or 7.
            idealised: whether to return their idealised receptive fields instead.

        Raises:
            KeyFiltersError: another size.

        >>> KeySet.consensus(5).size
        5
        """
        window = as_window(size)
        path = CONSENSUS / f"{'twins' if idealised else 'keys'}_{as_size(window)}.safetensors"
        if not path.exists():
            raise KeyFiltersError(
                f"there are consensus keys of 3×3, 5×5 and 7×7, none of {extent(window)}"
            )
        return cls.from_file(path)

    @classmethod
    def random(cls, count: int, size: Size = 7, seed: int = 0) -> KeySet:
        """Draw keys of independent Gaussian taps, the control of all others.

        Args:
            count: number of keys K.
            size: number of taps k along either side, or ``(k_y, k_x)``.
            seed: of the draw.

        Raises:
            KeyFiltersError: no keys, or keys of one tap.

        >>> KeySet.random(8, size=5, seed=3)
        KeySet(8 keys of 5×5: random, seed 3)
        """
        window = as_window(size)
        if count < 1 or window == (1, 1):
            raise KeyFiltersError(
                f"expected keys of at least two taps, got {count} of {extent(window)}"
            )
        drawn = np.random.default_rng(checked_seed(seed)).normal(size=(count, *window))
        return cls.from_filters(drawn, None, f"random, seed {seed}: independent Gaussian taps")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> KeySet:
        """Read a file that `save` wrote, or any other that `read_filters` reads.

        Args:
            path: file ending in .txt, .npy, .npz or .safetensors.

        Raises:
            KeyFiltersError: the file is missing, damaged, or holds no keys.
        """
        path = Path(path)
        filters, fields = read_keys(path)
        if "models" not in fields:
            return cls.from_filters(filters, fields["names"], f"read from {path.name}")
        try:
            models = fields.pop("models")
            return cls(filters, models=models and pd.DataFrame(models), **fields)
        except (AttributeError, TypeError, ValueError) as error:
            raise KeyFiltersError(f"{path.name} is a damaged file of keys: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the keys to a file; missing folders are made.

        Args:
            path: file ending in .txt, .npz or .safetensors, or in .npy, which holds `filters` only.

        Raises:
            KeyFiltersError: another ending.
        """
        fields = {name: getattr(self, name) for name in ("provenance", "licence", "names")}
        models = None if self.models is None else self.models.to_dict("list")
        write_keys(Path(path), self.filters, fields | {"models": models})

    @property
    def size(self) -> Size:
        """Number of taps k along either side; ``(k_y, k_x)`` of keys that are not square."""
        return as_size(self.window)

    @property
    def window(self) -> Window:
        """Kernel size ``(k_y, k_x)`` in taps, also of square keys."""
        return self.filters.shape[1], self.filters.shape[2]

    def __len__(self) -> int:
        return len(self.filters)

    def __repr__(self) -> str:
        keys = f"{len(self)} key{'s' * (len(self) > 1)} of {extent(self.window)}"
        label = self.provenance.split(":")[0]
        return f"KeySet({keys}: {label})" if label else f"KeySet({keys})"

    def _repr_html_(self) -> str:
        """Show the keys, for a notebook."""
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        told = f"<br><small>{escape(self.provenance)}</small>" if self.provenance else ""
        return f"<p>{escape(repr(self))}{told}</p>{contact_sheet(self.filters, 16, 42)}"

    def __getitem__(self, chosen: int | slice | Sequence[int] | NDArray[Any]) -> KeySet:
        """Return the set of some of the keys, by number, slice, list or mask."""
        rows = np.atleast_1d(np.arange(len(self))[chosen])
        models = None if self.models is None else self.models.iloc[rows].reset_index(drop=True)
        names = tuple(self.names[i] for i in rows)
        return KeySet(self.filters[rows], names, self.provenance, self.licence, models)

    def assign(
        self, w: NDArray[Any] | Tensor, *, chunk: int = 16384, device: str | torch.device = "cpu"
    ) -> Assignment:
        """Find each filter's best ``a·x + b``: key ``argmax |⟨x, w⟩|``, a = ⟨x, w⟩, b = mean w.

        Keys are as stored, so a carries the sign (babaiee2025quest). Where keys do equally well, to
        rounding, the first is taken; a constant filter gets the first key and a = 0.

        Args:
            w: ``(n, k_y, k_x)``, of the size of the keys.
            chunk: filters at a time in every thread, which bounds the memory.
            device: where to compute.

        Returns:
            Arrays ``(n,)``: index; a and residual ``‖w − a·x − b‖₂`` in units of w and b per tap,
            float32 if w is so or shorter, else float64. A filter that is not finite has index −1
            and NaN. The bits depend on a filter and the keys only, not on chunks or threads.

        Raises:
            KeyFiltersError: w has another shape or size, or is not of real numbers.

        >>> keys = KeySet.random(2)
        >>> index, a, b, residual = keys.assign(-2 * keys.filters + 0.5)
        >>> index.tolist(), a.round(9).tolist(), b.round(9).tolist()
        ([0, 1], [-2.0, -2.0], [0.5, 0.5])
        """
        w = w.detach() if isinstance(w, Tensor) else np.asarray(w)
        dtype = checked_dtype(w, self.window)
        if chunk < 1:
            raise KeyFiltersError(f"chunk must be at least 1, got {chunk}")
        return assign(w, torch.tensor(self.filters).flatten(1), dtype, chunk, torch.device(device))

    def reconstruct(self, index: ArrayLike, a: ArrayLike, b: ArrayLike) -> NDArray[Any]:
        """Return the filters ``a·x + b``.

        Args:
            index: ``(n,)`` numbers of keys; −1 goes with a = NaN.
            a: ``(n,)`` factors.
            b: ``(n,)`` constants per tap.

        Returns:
            ``(n, k_y, k_x)`` in the precision of a.

        Raises:
            KeyFiltersError: no such key, or lengths that differ.
        """
        return reconstruct(self.filters, np.asarray(index), np.asarray(a), np.asarray(b))

    def idealised(self) -> tuple[KeySet, pd.DataFrame]:
        """Return the idealised receptive field of every key as a key set, and what they are.

        Returns:
            The receptive fields, in the order of the keys, and the table of `keyfilters.match`.

        Raises:
            KeyFiltersError: less than 3 taps along both sides.

        >>> fields, table = KeySet.published("lindeberg2026-B").idealised()
        >>> float((table["r2"] > 0.99).mean())
        1.0
        """
        table = match(self.filters, null=None).assign(key=self.names)
        drawn = render_models(table, self.window)
        told = f"idealised receptive fields of: {self.provenance}"
        return KeySet.from_filters(drawn, self.names, provenance=told), table


def _as_keys(filters: ArrayLike | Tensor) -> NDArray[np.float64]:
    if isinstance(filters, Tensor):
        given = filters.detach().cpu()
        filters = (given.double() if given.is_floating_point() else given).numpy()
    array = np.asarray(filters)
    if array.ndim != 3 or 0 in array.shape:
        raise KeyFiltersError(f"expected keys of shape (K, k_y, k_x), got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise KeyFiltersError(f"expected keys of real numbers, got {array.dtype}")
    return array.astype(np.float64, order="C")
