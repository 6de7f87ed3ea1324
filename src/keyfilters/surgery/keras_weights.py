"""A Keras file in memory, whose kernels are written in place: HDF5, alone or in an archive.

A contiguous dataset is written where its bytes lie. One in chunks, which may be compressed, is
written by h5py, and then other bytes of the HDF5 file may change, but no other dataset.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
# Positions in the headers of zip archives: of one member before its data, and in the directory.
LOCAL_CRC, LOCAL_NAME, LOCAL_SIZE = 14, 26, 30
ENTRY_CRC, ENTRY_NAME, ENTRY_SIZE = 16, 28, 46
DESCRIBED = 8  # the flag of a member whose checksum stands behind its data


class KerasFile:
    """The whole file, and the kernels that a collector takes as views of it.

    Attributes:
        memory: what kernels that can be written are views of.

    Args:
        path: a file that `keyfilters.sources.keras_files` reads.
        collector: takes the convolutions; their kernels must be loaded before anything is written.
    """

    def __init__(self, path: Path, collector: Collector) -> None:
        import pyfive

        self._path = path
        self._whole = bytearray(path.read_bytes())
        self._hdf5 = np.frombuffer(self._whole, np.uint8)
        self._member: zipfile.ZipInfo | None = None
        self._parts: dict[str, tuple[Array, Array]] = {}  # by dataset: as it is, and as it was
        config = None
        if self._whole.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(read_member(archive, CONFIG))
                self._member = archive.getinfo(WEIGHTS)
                self._hdf5 = self._unpacked(archive, self._member)
        self.memory = [self._hdf5]
        file = pyfive.File(io.BytesIO(self._hdf5.tobytes()))
        collect_keras(file, collector, config=config, load=self._load)

    def content(self) -> bytes:
        """Return the file with what has been written to the kernels.

        Of an archive only the weights and their checksums change; if they are compressed, all
        members are packed anew, with their contents, order, and times.
        """
        changed = {
            name: now
            for name, (now, before) in self._parts.items()
            if now.tobytes() != before.tobytes()
        }
        hdf5 = _with_datasets(self._hdf5.tobytes(), changed) if changed else self._hdf5.tobytes()
        if self._member is None:
            return hdf5
        if self._member.compress_type == zipfile.ZIP_STORED and not changed:
            return _with_checksum(self._whole, self._path, self._member, zlib.crc32(hdf5))
        with zipfile.ZipFile(self._path) as archive:
            same = archive.read(self._member) == hdf5
        return self._path.read_bytes() if same else _with_member(self._path, WEIGHTS, hdf5)

    def _unpacked(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
        if member.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(bytearray(read_member(archive, WEIGHTS)), np.uint8)
        return np.frombuffer(
            self._whole, np.uint8, member.file_size, _data_start(self._whole, member)
        )

    def _load(self, dataset: Any) -> Array:
        """Return a dataset as a view of the file, or as an array that is written by h5py."""
        values = load_dataset(dataset)
        if dataset.id.layout_class == CONTIGUOUS:
            view = self._hdf5[dataset.id.data_offset :][: values.nbytes]
            if view.tobytes() == values.tobytes():
                return view.view(values.dtype).reshape(values.shape)
        if find_spec("h5py") is None:
            raise SkipError(NEEDS_H5PY)
        if dataset.name not in self._parts:
            self._parts[dataset.name] = values.copy(), values.copy()
            self.memory.append(self._parts[dataset.name][0])
        return self._parts[dataset.name][0]


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


def _data_start(archive: bytearray, member: zipfile.ZipInfo) -> int:
    """Return where the data of a member begin."""
    at = member.header_offset
    return at + LOCAL_SIZE + sum(struct.unpack_from("<HH", archive, at + LOCAL_NAME))


def _with_checksum(archive: bytearray, path: Path, member: zipfile.ZipInfo, checksum: int) -> bytes:
    """Return an archive whose member has new data of the same length, with their checksum."""
    made = archive.copy()
    places = [member.header_offset + LOCAL_CRC]
    if member.flag_bits & DESCRIBED:
        at = _data_start(archive, member) + member.compress_size
        places = [at + 4 * (made[at : at + 4] == b"PK\x07\x08")]
    with zipfile.ZipFile(path) as opened:
        at = opened.start_dir
        for entry in opened.infolist():  # as they stand in the directory
            if entry.header_offset == member.header_offset:
                places.append(at + ENTRY_CRC)
            at += ENTRY_SIZE + sum(struct.unpack_from("<HHH", made, at + ENTRY_NAME))
    for place in places:
        struct.pack_into("<I", made, place, checksum)
    return bytes(made)
