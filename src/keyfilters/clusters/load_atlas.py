"""Loading patterns that name filters: those that ship with the package, a file, an atlas."""

from __future__ import annotations

import os
from pathlib import Path

from keyfilters.clusters.atlas import Atlas
from keyfilters.clusters.pattern_book import PatternBook
from keyfilters.errors import KeyFiltersError, nearest

__all__ = ["SHIPPED", "load_atlas"]

SHIPPED = Path(__file__).parent / "shipped"


def load_atlas(name: str | os.PathLike[str]) -> PatternBook | Atlas:
    """Load patterns that name the filters of other models: `predict` and `transform`.

    Args:
        name: ``"zoo-5x5"``, which ships with the package; a file that `PatternBook.save` wrote; or
            a folder that `Atlas.save` or ``keyfilters atlas`` wrote.

    Raises:
        KeyFiltersError: no such patterns.

    >>> len(load_atlas("zoo-5x5").get_params()["table"])
    55
    """
    shipped = SHIPPED / f"{name}.safetensors"
    if shipped.exists():
        return PatternBook.load(shipped)
    if Path(name).is_dir():
        return Atlas.load(name)
    if not Path(name).exists():
        known = sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
        raise KeyFiltersError(
            f"no atlas {str(name)!r}{nearest(str(name), known)}; there are {', '.join(known)}, or "
            "give a file or folder"
        )
    return PatternBook.load(name)
