"""Formats that are recognised and refused, with advice what to give instead."""

from __future__ import annotations

from pathlib import Path

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError

__all__ = ["tensorrt"]


def tensorrt(path: Path, model: str) -> FilterBank:
    """Refuse a TensorRT engine, whose weights are laid out for one graphics card.

    Raises:
        SourceError: always.
    """
    raise SourceError(
        f"{path} is a TensorRT engine, built for one graphics card; give the ONNX file that it was "
        "built from"
    )
