"""Patterns of a fitted atlas, kept in a file, which name the filters of other models."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from keyfilters.bank import FilterBank
from keyfilters.claims import FILTERS
from keyfilters.errors import KeyFiltersError, SourceError, refuse_damage
from keyfilters.nulls import NULLS, null_bank
from keyfilters.scalespace import centred_unit, why_unusable
from keyfilters.tensor_files import save_tensors

if TYPE_CHECKING:
    from keyfilters.clusters.atlas import Atlas

__all__ = ["PatternBook", "name_filters_of", "named_beside_nulls"]

FORMAT = "keyfilters-patterns-1"
COLUMNS = ("pattern", "name", "kind", "formula", "share")
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class PatternBook:
    """The patterns of one kernel size: what the code decodes to, and its names.

    Attributes:
        size: ``(k_y, k_x)``.
        threshold: dissimilarity below which a filter counts as classified.
        decoded: ``(G, taps)`` filters along the code, centred, of unit norm.
        index: ``(G,)`` pattern of each.
        table: one row a pattern: pattern, name, kind, formula, share (of the filters it was fitted
            to).
        provenance: what it was fitted to.
    """

    size: tuple[int, int]
    threshold: float
    decoded: NDArray[np.float32]
    index: NDArray[np.int64]
    table: pd.DataFrame
    provenance: str = ""

    @classmethod
    def of(cls, atlas: Atlas, size: tuple[int, int], provenance: str = "") -> PatternBook:
        """Take the patterns of one kernel size of a fitted atlas.

        Raises:
            KeyFiltersError: the atlas has no such kernel size.
        """
        if size not in atlas.sizes_:
            held = ", ".join(f"{y}×{x}" for y, x in atlas.sizes_)
            raise KeyFiltersError(f"no {size[0]}×{size[1]} patterns in this atlas; it has {held}")
        one = atlas.sizes_[size]
        steps = len(one.decoded)
        place = np.rint(one.patterns.code * steps - 0.5).astype(np.int64)
        used, first = np.unique(place, return_index=True)
        # What no filter decodes to belongs to the pattern of the nearest step that is used.
        nearest_used = used[(one.decoded @ one.decoded[used].T).argmax(axis=1)]
        index = np.full(steps, -1, np.int64)
        index[used] = one.patterns.index[first]
        return cls(
            size=size,
            threshold=one.threshold,
            decoded=np.asarray(one.decoded, np.float32),
            index=index[nearest_used],
            table=one.patterns.table[list(COLUMNS)].reset_index(drop=True),
            provenance=provenance or f"atlas of {', '.join(atlas.bank_.models)}",
        )

    def predict(self, bank: FilterBank) -> pd.DataFrame:
        """Name the filters of a bank, without fitting.

        Returns:
            One row a filter of this kernel size, in the order of the bank: model, layer, depth,
            channel, flaw, pattern, name, kind (empty where a filter has no shape), code in (0, 1),
            dissimilarity and classified.

        Raises:
            KeyFiltersError: the bank holds no filter of this kernel size.
        """
        filters, table = bank.stack(self.size)
        usable = np.flatnonzero(why_unusable(filters) == "")
        step, dissimilarity = self._nearest(filters[usable])
        rows = self.table.iloc[self.index[step]]
        table = table[["model", "layer", "depth", "channel", "flaw"]].copy()
        for column in ("pattern", "name", "kind"):
            values = np.full(len(table), "", dtype=object)
            values[usable] = rows[column].to_numpy()
            table[column] = values
        for column, found in (
            ("code", (step + 0.5) / len(self.decoded)),
            ("dissimilarity", dissimilarity),
        ):
            numbers = np.full(len(table), np.nan)
            numbers[usable] = found
            table[column] = numbers
        return table.assign(classified=table["dissimilarity"] < self.threshold)

    def coverage(self, bank: FilterBank, seed: int = 0) -> dict[str, float]:
        """Return the share of usable filters that are classified, as `named_beside_nulls` does."""
        return named_beside_nulls(self, bank, seed)[1]

    def transform(self, bank: FilterBank) -> NDArray[np.float64]:
        """Return the code of every filter, ``(n,)`` in (0, 1); NaN for one without a shape."""
        return self.predict(bank)["code"].to_numpy()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return all attributes by name, so that `sklearn.base.clone` copies the patterns."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the patterns as one safetensors file."""
        held = self.get_params() | {"table": self.table.to_dict("list")}
        tensors = {name: held.pop(name) for name in ("decoded", "index")}
        metadata = {"format": FORMAT, "fields": json.dumps(held, ensure_ascii=False)}
        save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PatternBook:
        """Read a file that `save` wrote.

        Raises:
            SourceError: it is missing, damaged, or another kind of file.
        """
        from safetensors import safe_open

        with refuse_damage(path, "patterns of an atlas"):
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise SourceError(f"{path} holds no patterns of an atlas")
                held = json.loads(metadata["fields"])
                decoded, index = file.get_tensor("decoded"), file.get_tensor("index")
            size = (int(held["size"][0]), int(held["size"][1]))
            table = pd.DataFrame(held["table"])
            return cls(size, held["threshold"], decoded, index, table, held["provenance"])

    def __repr__(self) -> str:
        k_y, k_x = self.size
        origin = textwrap.shorten(self.provenance, 70, placeholder=" …")
        return f"PatternBook({len(self.table)} patterns of {k_y}×{k_x}: {origin})"

    def _repr_html_(self) -> str:
        """Show the most frequent patterns, their names and shares, for a notebook."""
        from html import escape

        from keyfilters.thumbnails import contact_sheet

        used = self.table.loc[np.unique(self.index)].sort_values("share", ascending=False).head(16)
        middles = [self.decoded[self.index == i].mean(axis=0) for i in used.index]
        sheet = contact_sheet([x.reshape(self.size) for x in middles], 16, 36)
        table = used.to_html(index=False, float_format="{:.3f}".format)
        return f"<p>{escape(repr(self))}</p>{sheet}{table}"

    def _nearest(
        self, filters: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        step = np.empty(len(filters), np.int64)
        dissimilarity = np.empty(len(filters), np.float32)
        for start in range(0, len(filters), BLOCK):
            rows = slice(start, start + BLOCK)
            cosine = centred_unit(filters[rows]) @ self.decoded.T
            step[rows] = cosine.argmax(axis=1)
            dissimilarity[rows] = 1 - cosine.max(axis=1)
        return step, dissimilarity


def name_filters_of(bank: FilterBank, books: Sequence[PatternBook]) -> pd.DataFrame:
    """Name the filters of all kernel sizes of a bank, each by the patterns of its size.

    Args:
        bank: the filters.
        books: one for each kernel size that has patterns.

    Returns:
        One row a filter in the order of the bank: the columns of `PatternBook.predict`, k_y, k_x.
    """
    by_size = {book.size: book for book in books}
    sizes = np.repeat([x.size for x in bank.layers], [len(x.weight) for x in bank.layers], axis=0)
    parts = []
    for size in bank.sizes:
        if size in by_size:
            part = by_size[size].predict(bank)
        else:
            part = bank.stack(size)[1][["model", "layer", "depth", "channel", "flaw"]]
            part = part.assign(pattern="", name="", kind="", code=np.nan, dissimilarity=np.nan,
                               classified=False)  # fmt: skip
        part.index = pd.Index(np.flatnonzero((sizes == size).all(axis=1)))
        parts.append(part)
    return pd.concat(parts).sort_index().assign(k_y=sizes[:, 0], k_x=sizes[:, 1])


def named_beside_nulls(
    named_by: PatternBook | Atlas, bank: FilterBank, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Name the filters of a bank, and say how many of as many null filters get a name.

    Args:
        named_by: patterns, or a fitted atlas with those of several kernel sizes.
        bank: the filters.
        seed: of the null filters.

    Returns:
        The table of `predict`; and of its usable filters the share that is classified, under
        ``"filters"``, and the same of every kind of `keyfilters.null_bank`.

    Raises:
        KeyFiltersError: as `predict`.
    """
    found = named_by.predict(bank)
    usable = (found["flaw"] == "").to_numpy()
    shares = {FILTERS: float(found["classified"][usable].mean())}
    for kind in NULLS:
        table = named_by.predict(null_bank(bank, kind, seed))
        shares[kind] = float(table["classified"][usable].mean())
    return found, shares
