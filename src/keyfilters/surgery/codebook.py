"""A model's filters as keys and three numbers a filter: which key, a and b."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery.offers import Keys, offer_keys
from keyfilters.surgery.sites import Model, find_sites

__all__ = ["Code", "Codebook"]

FORMAT = "keyfilters-codebook-1"


@dataclass(frozen=True, eq=False)
class Code:
    """The filters of one layer, ``a · keys.filters[index] + b``.

    Attributes:
        keys: number of the key set in the codebook.
        index: ``(C,)`` in the shortest unsigned integer that holds it.
        a: ``(C,)`` float32.
        b: ``(C,)`` float32, per tap.
    """

    keys: int
    index: NDArray[np.unsignedinteger[Any]]
    a: NDArray[np.float32]
    b: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Codebook:
    """Depthwise layers of a model in terms of keys (babaiee2025quest).

    Attributes:
        sets: the key sets.
        layers: the code of every layer, by name.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(64, 64, 7, groups=64))
    >>> codebook = Codebook.encode(net, KeySet.published("lindeberg2026-B"))
    >>> codebook.bytes, 64 * 49 * 4
    (2144, 12544)
    """

    sets: tuple[KeySet, ...]
    layers: dict[str, Code]

    @classmethod
    def encode(cls, model: Model, keys: Keys, layers: Sequence[str] | None = None) -> Codebook:
        """Encode the filters of a model by the keys nearest to them; the model stays as it is.

        After `replace_filters_` with the same keys nothing is lost but the rounding to float32.

        Args:
            model: a module or a state dict.
            keys: as for `replace_filters_`, but for ``"idealized"``.
            layers: names or patterns; None takes all that have keys.

        Raises:
            KeyFiltersError: as `replace_filters_`.
        """
        if isinstance(keys, str):
            raise KeyFiltersError("a codebook needs key sets; filters of their own are no code")
        sites, left = find_sites(model, layers)
        offered = offer_keys(sites, keys, left)
        sets: list[KeySet] = []
        codes = {}
        for site in sites:
            offer = offered.get(site.name)
            if not isinstance(offer, KeySet):
                continue
            if not any(offer is known for known in sets):
                sets.append(offer)
            number = next(i for i, known in enumerate(sets) if known is offer)
            index, a, b, _ = offer.assign(site.filters)
            if (index < 0).any():
                raise KeyFiltersError(f"layer {site.name} holds filters that are not finite")
            short = index.astype(np.min_scalar_type(len(offer) - 1))
            codes[site.name] = Code(number, short, a.astype(np.float32), b.astype(np.float32))
        return cls(tuple(sets), codes)

    @property
    def bytes(self) -> int:
        """Bytes of all codes, and of the keys in float32."""
        codes = sum(c.index.nbytes + c.a.nbytes + c.b.nbytes for c in self.layers.values())
        return codes + sum(4 * keys.filters.size for keys in self.sets)

    def dense(self) -> dict[str, NDArray[np.float32]]:
        """Return the filters ``(C, k, k)`` of every layer."""
        return {
            name: self.sets[code.keys].reconstruct(code.index.astype(np.int64), code.a, code.b)
            for name, code in self.layers.items()
        }

    def write_(self, model: Model) -> None:
        """Overwrite the layers of a model of the same architecture.

        Raises:
            KeyFiltersError: a layer is missing or has another shape; the model is then unchanged.
        """
        dense = self.dense()
        sites, _ = find_sites(model, list(dense))
        for site in sites:
            if dense[site.name].shape != site.filters.shape:
                raise KeyFiltersError(
                    f"the codebook has {dense[site.name].shape} for {site.name}, the model "
                    f"{site.filters.shape}"
                )
        for write_ in [site.prepare(dense[site.name]) for site in sites]:
            write_()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.safetensors`` file."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {}
        for i, keys in enumerate(self.sets):
            tensors[f"keys/{i}"] = keys.filters
        for name, code in self.layers.items():
            tensors |= {f"{part}/{name}": getattr(code, part) for part in ("index", "a", "b")}
        notes = {
            "sets": [
                {"names": k.names, "provenance": k.provenance, "licence": k.licence}
                for k in self.sets
            ],
            "layers": {name: code.keys for name, code in self.layers.items()},
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={FORMAT: json.dumps(notes)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Codebook:
        """Read what `save` wrote.

        Raises:
            KeyFiltersError: the file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                notes = json.loads((file.metadata() or {})[FORMAT])
                sets = tuple(
                    KeySet.from_filters(file.get_tensor(f"keys/{i}"), **fields)
                    for i, fields in enumerate(notes["sets"])
                )
                layers = {
                    name: Code(keys, *(file.get_tensor(f"{p}/{name}") for p in ("index", "a", "b")))
                    for name, keys in notes["layers"].items()
                }
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise KeyFiltersError(f"{path} is not a codebook that can be read: {error}") from error
        return cls(sets, layers)
