"""Reading Darknet models: numbers without names in ``.weights``, the layers in ``.cfg``."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Collector, Geometry
from keyfilters.sources.content import beside, mapped

__all__ = ["read_darknet"]

Section = tuple[str, dict[str, str]]
# Layers without weights that keep the number of channels.
PLAIN = (
    "shortcut", "maxpool", "max", "avgpool", "avg", "local_avgpool", "local_avg", "upsample",
    "crop", "dropout", "yolo", "region", "detection", "gaussian_yolo", "softmax", "soft", "cost",
    "activation", "logistic", "sam", "scale_channels", "l2norm", "normalization", "lrn", "noise",
    "empty", "silence", "contrastive",
)  # fmt: skip


def read_darknet(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a ``.weights`` file; its ``.cfg`` must lie beside it.

    Raises:
        SourceError: there is no ``.cfg``.
        ValueError: one of the two is damaged, or has layers whose weights are not known.
    """
    sections = _sections(beside(path, f"{path.stem}.cfg"))
    data = mapped(path)
    if len(data) < 16:
        raise ValueError("it is cut short")
    major, minor, _ = struct.unpack_from("<3i", data)
    start = 20 if major * 10 + minor >= 2 else 16
    values = np.frombuffer(data, "<f4", (len(data) - start) // 4, start)
    return _read(sections, values, Collector(model))


def _sections(path: Path) -> list[Section]:
    found: list[Section] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = line.partition("#")[0].partition(";")[0].strip()
        if line.startswith("["):
            found.append((line.strip("[]").lower(), {}))
        elif "=" in line and found:
            key, _, value = line.partition("=")
            found[-1][1][key.strip()] = value.strip()
    if not found or found[0][0] not in ("net", "network"):
        raise ValueError(f"{path.name} does not begin with [net]")
    return found


def _read(sections: list[Section], values: np.ndarray, collector: Collector) -> FilterBank:
    channels = [int(sections[0][1].get("channels", 3))]  # behind every layer; the input first
    at = 0
    for index, (kind, held) in enumerate(sections[1:]):
        name, before = f"{kind}_{index}", channels[-1]

        def number(key: str, default: int, held: dict[str, str] = held) -> int:
            return int(float(held.get(key, default)))

        if kind in ("convolutional", "conv", "deconvolutional", "deconv"):
            out, groups, size = number("filters", 1), number("groups", 1), number("size", 1)
            size_y, size_x = number("size_y", size), number("size_x", size)
            if min(out, groups, size_y, size_x) < 1 or before % groups or out % groups:
                raise ValueError(
                    f"{name} has {out} filters of {before} channels in {groups} groups"
                )
            transposed = kind.startswith("deconv")
            at += out * (4 if number("batch_normalize", 0) else 1)
            count = out * (before // groups) * size_y * size_x
            if at + count > len(values):
                raise ValueError(f"it is cut short: {name} needs {at + count} numbers")
            stored, at = values[at : at + count], at + count
            pad = size // 2 if number("pad", 0) else number("padding", 0)
            stride = number("stride", 1)
            geometry = Geometry(
                transposed=transposed,
                stride=(number("stride_y", stride), number("stride_x", stride)),
                dilation=(number("dilation", 1),) * 2,
                padding=(pad, pad),
            )
            shape = (groups, out // groups, before // groups, size_y, size_x)
            collector.kernel(name, "goiyx", shape, lambda x=stored: x, geometry)  # type: ignore[misc]
            channels.append(out)
        elif kind == "route":
            places = [int(x) for x in held.get("layers", "-1").split(",")]
            sources = [x + 1 if x >= 0 else index + 1 + x for x in places]
            if any(not 0 <= x <= index for x in sources):
                raise ValueError(f"{name} leads to a layer that is not there")
            channels.append(sum(channels[x] for x in sources) // max(number("groups", 1), 1))
        elif kind in ("reorg", "reorg3d"):
            channels.append(before * number("stride", 1) ** 2)
        elif kind == "batchnorm":
            at += 3 * before
            channels.append(before)
        elif kind in PLAIN:
            channels.append(before)
        else:
            raise ValueError(f"it has a layer [{kind}], whose weights are not known")
        if not 0 < channels[-1] < 2**24:
            raise ValueError(f"{name} has {channels[-1]:.0e} channels")
    if at != len(values):
        raise ValueError(f"its layers have {at} numbers, the .weights file {len(values)}")
    return collector.bank()
