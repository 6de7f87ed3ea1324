"""A Keras file in memory, whose kernels are written in place: HDF5, alone or in an archive.

A contiguous dataset is written where its bytes lie. One in chunks, which may be compressed, is
written by h5py, and then other bytes of the HDF5 file may change, but no other dataset.
"""

from __future__ import annotations

import io
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from keyfilters.sources.collect import Array, Collector, SkipError
from keyfilters.sources.keras_files import (
    CONFIG,
    WEIGHTS,
    collect_keras,
    load_dataset,
    read_member,
)

__all__ = ["KerasFile"]

CONTIGUOUS = 1  # HDF5's number of this layout
NEEDS_H5PY = "its weights are stored in chunks, to write which needs h5py; type: pip install h5py"


class KerasFile:
    """The HDF5 content of a file, and the kernels that a collector takes as views of it.

    Attributes:
        memory: what kernels that can be written are views of.

    Args:
        path: a file that `keyfilters.sources.keras_files` reads.
        collector: takes the convolutions; their kernels must be loaded before anything is written.
    """

    def __init__(self, path: Path, collector: Collector) -> None:
        import pyfive

        self._path = path
        self._before, config = path.read_bytes(), None
        self._archived = self._before.startswith(b"PK")
        if self._archived:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(read_member(archive, CONFIG))
                self._before = read_member(archive, WEIGHTS)
        self._hdf5 = np.frombuffer(bytearray(self._before), np.uint8)
        self._chunked: dict[str, tuple[Array, Array]] = {}  # by dataset: as it is, and as it was
        self.memory = [self._hdf5]
        file = pyfive.File(io.BytesIO(self._before))
        collect_keras(file, collector, config=config, load=self._load)

    def content(self) -> bytes:
        """Return the file with what has been written to the kernels.

        An archive is packed anew, with the same members, order and times.
        """
        hdf5 = self._hdf5.tobytes()
        changed = {
            name: now
            for name, (now, before) in self._chunked.items()
            if now.tobytes() != before.tobytes()
        }
        if changed:
            hdf5 = _with_datasets(hdf5, changed)
        if not self._archived:
            return hdf5
        if hdf5 == self._before:
            return self._path.read_bytes()
        return _with_member(self._path, WEIGHTS, hdf5)

    def _load(self, dataset: Any) -> Array:
        """Return a dataset as a view of the file, or as an array that is written by h5py."""
        values = load_dataset(dataset)
        if dataset.id.layout_class == CONTIGUOUS:
            view = self._hdf5[dataset.id.data_offset :][: values.nbytes]
            if view.tobytes() == values.tobytes():
                return view.view(values.dtype).reshape(values.shape)
        if find_spec("h5py") is None:
            raise SkipError(NEEDS_H5PY)
        if dataset.name not in self._chunked:
            self._chunked[dataset.name] = values.copy(), values.copy()
            self.memory.append(self._chunked[dataset.name][0])
        return self._chunked[dataset.name][0]


def _with_datasets(content: bytes, datasets: dict[str, Array]) -> bytes:
    """Return an HDF5 file with new numbers in some datasets."""
    import h5py

    held = io.BytesIO(content)
    with h5py.File(held, "r+") as file:
        for name, values in datasets.items():
            file[name][...] = values
    return held.getvalue()


def _with_member(path: Path, name: str, content: bytes) -> bytes:
    """Return an archive with another content of one member."""
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        new.comment = old.comment
        for member in old.infolist():
            new.writestr(member, content if member.filename == name else old.read(member))
    return made.getvalue()
