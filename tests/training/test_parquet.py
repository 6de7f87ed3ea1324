"""Folders of parquet files: the real CIFAR-10 where it is, and small files made here."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.training import load_data
from keyfilters.training.parquet import parquet_splits
from keyfilters.training.readers import Items

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["dark", "light"]},
    "note": {"_type": "Value", "dtype": "string"},
}


def picture(level: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((6, 6, 3), level % 256, np.uint8)).save(file, "png")
    return file.getvalue()


def write(path: Path, labels: list[int | None], features: dict[str, Any] = FEATURES) -> None:
    """Write images whose grey level is 10 times their number plus 100 times their label."""
    stored = [{"bytes": picture(10 * i + 100 * (x or 0)), "path": None} for i, x in
              enumerate(labels)]  # fmt: skip
    columns = {"image": stored, "label": labels, "note": [""] * len(labels)}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("transparent", [True, False])
def test_images_in_tables_are_read_as_those_in_folders(tmp_path: Path, transparent: bool) -> None:
    """What is transparent lies over white, and 16 bits are refused, not clipped."""
    generator = np.random.default_rng(0)
    clear = np.dstack([np.full((6, 6, 3), 128), np.zeros((6, 6, 1))]).astype(np.uint8)
    deep = generator.integers(0, 2**16, (6, 6), dtype=np.uint16)
    file = BytesIO()
    Image.fromarray(clear if transparent else deep).save(file, "png")
    columns = {"image": [{"bytes": file.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    for split in ("train", "test"):
        table = pa.table({**columns, "note": [""] * 4}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    if transparent:
        assert (load_data(f"hf:{tmp_path}").images == 255).all()
    else:
        with pytest.raises(KeyFiltersError, match="more than 8 bits"):
            load_data(f"hf:{tmp_path}")


def test_a_folder_of_parquet_files_is_read_in_place(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0])
    write(tmp_path / "train-00001-of-00002.parquet", [1, None])
    write(tmp_path / "test-00000-of-00001.parquet", [1, 1])
    before = {x: x.read_bytes() for x in tmp_path.iterdir()}
    data = load_data(f"hf:{tmp_path}")
    assert data.classes == ("dark", "light") and data.labels.tolist() == [0, 1, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 110, 20, 100], "in the order of the files"
    assert data.images.shape == (4, 3, 6, 6) and len(data.test_images) == 2
    assert {x: x.read_bytes() for x in tmp_path.iterdir()} == before, "nothing was written"
    streamed = load_data(f"hf:{tmp_path}", stream=True, resolution=6)
    items = streamed.items["training"]
    assert items.checksum() == checksum_of(0, 110, 20, 100) and len(items) == 4
    assert pickle.loads(pickle.dumps(items)).image(1).getpixel((0, 0)) == (110, 110, 110)


def checksum_of(*levels: int) -> int:
    sums = [crc32(bytes([level]) * 6 * 6 * 3) for level in levels]
    return crc32(np.array(sums, np.uint32).tobytes())


def test_split_in_a_folder_named_data(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", [0, 1] * 5)
    data = load_data(f"hf:{tmp_path}")
    assert len(data.images) == 8 and len(data.test_images) == 2, "a fifth of each class"


def test_what_is_no_such_folder_goes_to_the_hub_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path / "train-00000-of-00001.parquet", [0, 1], {})
    assert parquet_splits(tmp_path) == {}, "the kinds of its columns are unknown"
    with pytest.raises(MissingExtraError):
        load_data(f"hf:{tmp_path}")
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(KeyFiltersError, match="cannot be read"):
        load_data(f"hf:{tmp_path}")


def test_cifar10_as_it_lies() -> None:
    folder = os.environ.get("KEYFILTERS_CIFAR10", "")
    if not folder:
        pytest.skip("KEYFILTERS_CIFAR10 names no folder with CIFAR-10")
    data = load_data(f"hf:{folder}", classes=["cat", "ship"], samples=100)
    assert data.images.shape == (100, 3, 32, 32) and data.test_images.shape == (2000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [50, 50]
    assert torch.is_tensor(data.images) and 0.3 < min(data.mean) < max(data.mean) < 0.6


def test_an_interrupt_ends_the_reading_of_all_images_soon() -> None:
    read: list[int] = []
    main = threading.get_ident()

    def decode(number: int) -> Image.Image:
        read.append(number)
        if len(read) == 300:
            signal.pthread_kill(main, signal.SIGINT)
        return Image.new("RGB", (1, 1))

    many = 100_000
    items = Items(np.arange(many), np.arange(many), decode=decode)
    before = torch.get_num_threads()
    held = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background: ignored
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyboardInterrupt):
            items.checksum()
    finally:
        torch.set_num_threads(before)
        signal.signal(signal.SIGINT, held)
    assert len(read) < many / 10
