"""Fit the atlas that ships with the package: patterns of the 5×5 filters of a zoo.

About 5 minutes on two cores. Writes src/keyfilters/clusters/shipped/zoo-5x5.safetensors.

    python benchmarks/zoo_atlas.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from check import PACKAGES, trained

import keyfilters as kf
from keyfilters.clusters.load_atlas import SHIPPED
from keyfilters.clusters.pattern_book import PatternBook

SIZE = (5, 5)
MOST = 2000  # filters of a model, so that no model outweighs the others


def balanced(name: str, bank: kf.FilterBank) -> kf.FilterBank:
    """At most `MOST` filters of the kernel size, drawn from all layers alike."""
    layers = [x for x in bank.layers if x.size == SIZE]
    count = sum(len(x.weight) for x in layers)
    rng = np.random.default_rng(len(name))
    kept = [rng.random(len(x.weight)) < MOST / max(count, 1) for x in layers]
    return kf.FilterBank(
        replace(x, model=name, weight=x.weight[k]) for x, k in zip(layers, kept, strict=True)
    )


def main() -> None:
    bank = kf.FilterBank([])
    for name, one in trained(None).items():
        if SIZE in one.sizes:
            bank = bank + balanced(name, one)
    print(bank, flush=True)
    atlas = kf.Atlas(seed=0, seeds=1, counts=(8,)).fit(bank, progress=print)
    told = f"{len(bank):,} filters of {len(bank.models)} models of {', '.join(PACKAGES)}"
    book = PatternBook.of(atlas, SIZE, told)
    book.save(Path(SHIPPED) / "zoo-5x5.safetensors")
    print(book)
    print(book.table.sort_values("share", ascending=False).head(20).to_string())


if __name__ == "__main__":
    main()
