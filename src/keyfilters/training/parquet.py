"""Labelled images in parquet files, as the Hugging Face hub lays them out, read in place.

The files say in their metadata which column holds images and which holds labels, so that the
package `datasets`, which would copy them into a cache, is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["ClassLabel", "Image", "Split", "parquet_splits"]

SPLITS = ("train", "test", "validation")
METADATA = b"huggingface"


@dataclass(frozen=True)
class Image:
    """The kind of a column that holds encoded images."""


@dataclass(frozen=True)
class ClassLabel:
    """The kind of a column of class numbers: the name of every number."""

    names: tuple[str, ...]


class Split:
    """One split, used like one of the package `datasets`: by column name, or by row number.

    Attributes:
        features: column → its kind; an `Image`, a `ClassLabel`, or the name of another kind.
    """

    def __init__(self, files: Sequence[Path], features: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        self.features = dict(features)
        wanted = [name for name, kind in features.items() if not isinstance(kind, str)]
        try:
            table = pa.concat_tables(pq.read_table(file, columns=wanted) for file in files)
            self._rows = table.num_rows
            self._columns = {name: table.column(name) for name in wanted}
            for name, column in self._columns.items():
                if pa.types.is_struct(column.type):  # bytes and path
                    self._columns[name] = pc.struct_field(column, "bytes")
        except (OSError, LookupError, pa.ArrowException) as error:
            raise KeyFiltersError(f"{files[0]} cannot be read ({error}); fetch it again") from error

    def __len__(self) -> int:
        return int(self._rows)

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self._columns[key].to_pylist()
        return {
            name: _decoded(self._columns[name][key].as_py())
            for name, kind in self.features.items()
            if isinstance(kind, Image)
        }


def _decoded(stored: bytes) -> PillowImage:
    from PIL import Image as Pillow

    return Pillow.open(BytesIO(stored))


def parquet_splits(folder: Path) -> dict[str, Split]:
    """Return the splits of a folder of files such as ``train-00000-of-00001.parquet``.

    Returns:
        train, test and validation, as far as they are there; nothing if the folder has no such
        files, or they do not name the kinds of their columns.

    Raises:
        KeyFiltersError: a file cannot be read.
    """
    places = (folder, folder / "data")
    found = {}
    for split in SPLITS:
        files = next((x for p in places if (x := sorted(p.glob(f"{split}-*.parquet")))), [])
        features = _features(files[0]) if files else {}
        if features:
            found[split] = Split(files, features)
    return found


def _features(file: Path) -> dict[str, Any]:
    """Return the kind of every column of a file, as the hub writes it into the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        told = json.loads((pq.read_schema(file).metadata or {}).get(METADATA, b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise KeyFiltersError(f"{file} cannot be read ({error}); fetch it again") from error
    found: dict[str, Any] = {}
    try:
        for name, told_kind in told.get("info", {}).get("features", {}).items():
            kind = told_kind.get("_type", "") if isinstance(told_kind, dict) else ""
            found[name] = {"Image": Image(), "ClassLabel": ClassLabel(())}.get(kind, kind)
            if kind == "ClassLabel":
                found[name] = ClassLabel(tuple(map(str, told_kind["names"])))
    except (AttributeError, LookupError, TypeError) as error:
        message = f"{file}: the kinds of its columns cannot be read ({error!r}); fetch it again"
        raise KeyFiltersError(message) from error
    return found
