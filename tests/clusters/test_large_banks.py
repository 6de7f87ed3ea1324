"""Banks that stay on disk: the same bits however the work is divided, and never whole in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import keyfilters as kf
from keyfilters import bank as bank_module
from keyfilters import columns
from keyfilters.bank import FilterBank, Layer
from keyfilters.clusters import atlas as atlas_module
from keyfilters.clusters import per_filter, tables
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.columns import GRAIN
from keyfilters.filter_rows import FilterRows
from keyfilters.receptive_fields import build_dictionary
from keyfilters.report import payload

FILTERS = 5000


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PrincipalCurve.__init__.__kwdefaults__, "steps", 40)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank of 3×3 filters on disk, with some of another size and some broken ones between."""
    generator = np.random.default_rng(0)
    atoms = build_dictionary((3, 3)).atoms
    filters = atoms[generator.integers(len(atoms), size=FILTERS)].astype(np.float32)
    filters += 0.1 * generator.standard_normal(filters.shape, np.float32)
    filters[700:705], filters[2000, 1, 1] = 0, np.nan
    layers = [
        Layer(f"m{i // 4}", f"l{i}", part, (1 + i % 2, 1), (1, 1), (i % 4) / 3)
        for i, part in enumerate(np.array_split(filters, 11))
    ]
    few = generator.standard_normal((30, 5, 5)).astype(np.float32)
    layers.insert(3, Layer("m0", "few", few, None, None, 0.5))
    FilterBank(layers).save(tmp_path / "bank.safetensors")
    monkeypatch.setattr(bank_module, "MAPPED_FROM", 0)
    return tmp_path / "bank.safetensors"


def fitted(bank: FilterBank) -> kf.Atlas:
    return kf.Atlas(seeds=1, counts=(1, 4), sample=500).fit(bank)


def without_categories(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(dict.fromkeys(table.select_dtypes("category").columns, "str"))


def test_chunks_threads_and_categories_change_no_bit(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, before, found = kf.read(saved), torch.get_num_threads(), []
    try:
        for threads, chunk, large in ((1, 16, 2**18), (3, 1, 1000)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(per_filter, "CHUNK", chunk * GRAIN)
            monkeypatch.setattr(columns, "LARGE", large)
            monkeypatch.setattr(atlas_module, "LARGE", large)
            found.append(fitted(bank))
            assert len(found[-1].table_) == len(bank)  # which is kept unless it is large
    finally:
        torch.set_num_threads(before)
    first, again = found
    assert isinstance(again.table_["family"].dtype, pd.CategoricalDtype)
    assert not isinstance(first.table_["family"].dtype, pd.CategoricalDtype)
    assert again.summary_["sizes"] == first.summary_["sizes"]
    for name in ("table_", "coverage_", "claims_", "unusable_"):
        pd.testing.assert_frame_equal(
            getattr(first, name), without_categories(getattr(again, name)), check_exact=True
        )


def test_a_bank_on_disk_is_read_in_chunks_and_its_table_written_in_groups(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    take = FilterRows.__getitem__

    def watched(self: FilterRows, chosen: Any) -> Any:
        found = take(self, chosen)
        read.append(len(found))
        return found

    monkeypatch.setattr(FilterRows, "__getitem__", watched)
    monkeypatch.setattr(per_filter, "CHUNK", GRAIN)
    monkeypatch.setattr(tables, "ROW_GROUP", 600)
    monkeypatch.setattr(payload, "LAYERS", 5)
    monkeypatch.setattr(columns, "LARGE", 1000)
    bank = kf.read(saved)
    assert not any(layer.weight.flags.owndata or layer.weight.flags.writeable
                   for layer in bank.layers)  # fmt: skip
    atlas = fitted(bank)
    atlas.save(tmp_path / "out")
    page = kf.write_report(atlas, tmp_path / "out" / "report.html").read_text()
    assert max(read) <= GRAIN and sum(read) >= 3 * FILTERS
    assert "each of 5 of the 12 layers" in page
    file = pq.ParquetFile(tmp_path / "out" / "filters.parquet")
    assert file.num_row_groups == -(-len(bank) // 600)
    table = file.read().to_pandas()
    whole = without_categories(atlas.table_)
    pd.testing.assert_frame_equal(table, whole, check_dtype=False, check_exact=True)
    assert (tmp_path / "out" / "bank.safetensors").read_bytes() == saved.read_bytes()
    again = kf.Atlas.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.table_, atlas.table_)
    assert again.unusable_["flaw"].tolist() == ["dead"] * 5 + ["non-finite"]
