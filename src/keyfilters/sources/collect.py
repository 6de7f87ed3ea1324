"""Where all readers meet: convolutions go in, the bank of one model comes out.

Formats lay a kernel out in different orders. A layout is a word with one letter an axis: ``o``
output channels, ``i`` input channels (of one group), ``z y x`` taps, ``c`` input channels and ``m``
filters each of a depthwise kernel, ``g`` groups, ``1`` an axis of extent one. PyTorch's is
``oiyx``, TensorFlow's ``yxio`` and ``yxcm``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.depthwise import ConvShape, why_not_depthwise

__all__ = ["BY_NAME", "SHAPE_ONLY", "Array", "Collector", "Geometry", "SkipError", "float_array",
           "natural_order", "symmetric"]  # fmt: skip

Array = NDArray[Any]
Load = Callable[[], NDArray[Any]]
LARGEST = 2**26  # values of one depthwise kernel: far above any real one

# Notes of layers.
SHAPE_ONLY = "known by its shape only: could also be a convolution of a one-channel image"
BY_NAME = "depth follows the order of names, since the file does not keep that of its layers"


class SkipError(Exception):
    """The weights of a convolution cannot be read; the message says why."""


@dataclass(frozen=True)
class Geometry:
    """What a format tells about a convolution besides its kernel.

    Attributes:
        groups: number of groups; None where the format does not tell.
        transposed: whether it is a transposed convolution.
        stride: one number an axis of the kernel.
        dilation: one number an axis of the kernel.
        padding: as `keyfilters.bank.Layer.padding`.
    """

    groups: int | None = None
    transposed: bool = False
    stride: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    padding: tuple[int, ...] | str | None = None


class Collector:
    """Gathers the depthwise layers of one model in the order in which they are offered.

    Args:
        model: name of the model, for the bank's tables.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.skipped: list[tuple[str, str]] = []
        self._layers: list[Layer] = []
        self._owner: dict[Hashable, str] = {}

    def kernel(
        self,
        name: str,
        layout: str,
        shape: Sequence[int],
        load: Load,
        geometry: Geometry | None = None,
        *,
        identity: Hashable = None,
        note: str = "",
    ) -> None:
        """Take a convolution, whose kernel lies in a layout, if it is depthwise.

        Args:
            name: the layer's name as its format spells it.
            layout: one letter an axis of the kernel; see the module.
            shape: of the kernel as it is stored.
            load: returns the kernel in this shape; called for depthwise convolutions only.
            geometry: what else the format tells.
            identity: equal for two layers that share one parameter, which is then counted once.
            note: what a reader should know about this layer.

        Raises:
            ValueError: the shape and the groups cannot be those of a convolution.
        """
        geometry = geometry or Geometry()
        conv = _conv_shape(layout, shape, geometry)

        def filters() -> Array:
            if prod(shape) > LARGEST:
                raise SkipError(f"a kernel of {prod(shape)} values, which is not read")
            values = np.asarray(load())
            if values.size != prod(shape):
                raise ValueError(f"{name} has {values.size} weights, expected shape {tuple(shape)}")
            order = sorted(range(len(layout)), key=lambda i: "1gcomizyx".index(layout[i]))
            return values.reshape(shape).transpose(order)

        try:
            self.offer(
                name,
                conv,
                filters,
                stride=geometry.stride,
                dilation=geometry.dilation,
                padding=geometry.padding,
                identity=identity,
                note=note,
            )
        except SkipError as error:
            self.skip(name, str(error))

    def offer(
        self,
        name: str,
        shape: ConvShape,
        weight: Load,
        *,
        stride: tuple[int, ...] | None = None,
        dilation: tuple[int, ...] | None = None,
        padding: tuple[int, ...] | str | None = None,
        identity: Hashable = None,
        note: str = "",
    ) -> None:
        """Take a convolution if it is depthwise, otherwise note the reason.

        Args:
            name: the layer's name as its format spells it.
            shape: what the format tells about the convolution.
            weight: returns the weights, reshapable to ``(C, k_y, k_x)``; called for depthwise
                convolutions only, so that other weights are never loaded.
            stride: one number an axis, or None.
            dilation: one number an axis, or None.
            padding: see `keyfilters.bank.Layer`.
            identity: equal for two layers that share one parameter, which is then counted once.
            note: what a reader should know about this layer.
        """
        ndim = len(shape.kernel)
        if ndim == 1:  # read as 1×k
            shape = replace(shape, kernel=(1, *shape.kernel))
        reason = why_not_depthwise(shape)
        if reason is None and identity is not None and identity in self._owner:
            reason = f"shares its weights with {self._owner[identity]}, counted once"
        if reason is not None:
            self.skip(name, f"1-D: {reason}" if ndim == 1 and "1×" in reason else reason)
            return
        stored = np.asarray(weight()).reshape(shape.out_channels, *shape.kernel)
        if identity is not None:
            self._owner[identity] = name
        if stored.dtype == np.float64:
            note = "; ".join(filter(None, [note, "stored as float64, rounded to float32"]))
        with np.errstate(over="ignore"):
            filters = np.array(stored, dtype=np.float32, order="C")  # a copy: models may train on
        filters.flags.writeable = False
        self._layers.append(
            Layer(
                *(self.model, name, filters, _pair(stride, 1), _pair(dilation, 1), 0.0),
                *(shape.multiplier, note, shape.groups),
                _pair(padding, 0) if isinstance(padding, tuple) else padding,
                ndim,
            )
        )

    def skip(self, name: str, reason: str) -> None:
        """Note something that was seen and not taken."""
        name, reason = (" ".join(x.split()) for x in (name, reason))  # files may hold any text
        self.skipped.append((f"{self.model}/{name}" if name else self.model, reason))

    def bank(self) -> FilterBank:
        """Return what was gathered, with relative depths from 0 (first layer) to 1 (last)."""
        last = max(len(self._layers) - 1, 1)
        layers = [replace(layer, depth=i / last) for i, layer in enumerate(self._layers)]
        return FilterBank(layers, self.skipped)


def _conv_shape(layout: str, shape: Sequence[int], geometry: Geometry) -> ConvShape:
    """Return what a kernel's shape and the groups say of the convolution."""
    if len(shape) != len(layout) or min(shape) < 1:
        raise ValueError(f"expected a kernel laid out as {layout}, got one of shape {tuple(shape)}")
    extent = dict(zip(layout, shape, strict=True))
    taps = tuple(extent[axis] for axis in "zyx" if axis in extent)
    groups = extent["c"] if "c" in extent else extent.get("g", geometry.groups)
    if groups is not None and groups < 1:
        raise ValueError(f"a convolution of {groups} groups")
    if "c" in extent:
        channels, out, each = groups, (groups or 1) * extent["m"], 1
    elif "g" in extent:
        each = extent["i"]
        channels, out = (groups or 1) * each, (groups or 1) * extent["o"]
    elif geometry.transposed and groups is not None:
        channels, out, each = extent["i"], extent["o"] * groups, extent["i"] // groups
    else:
        out, each = extent["o"], extent["i"]
        # What input a kernel of one channel a group sees is not told; any other is not depthwise.
        channels = groups * each if groups is not None else (None if each == 1 else each)
    if groups and (out % groups or not each or (channels is not None and channels % groups)):
        raise ValueError(f"a kernel of shape {tuple(shape)} does not fit {groups} groups")
    return ConvShape(taps, channels, out, each, geometry.transposed)


def _pair(numbers: tuple[int, ...] | None, missing: int) -> Any:
    """Return numbers of one or two axes as (y, x); None for three axes or what is no number."""
    if numbers is None or len(numbers) not in (1, 2, 4):
        return None
    numbers = tuple(int(x) for x in numbers)
    return (missing, *numbers) if len(numbers) == 1 else numbers


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``"blocks.2"`` before ``"blocks.10"``."""
    parts = re.split(r"(\d{1,18})", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def symmetric(pads: Sequence[int]) -> tuple[int, ...] | None:
    """Return paddings, all begins before all ends, as one number an axis where the sides agree.

    >>> symmetric([1, 1, 1, 1]), symmetric([0, 0, 1, 1]), symmetric([2, 2])
    ((1, 1), (0, 0, 1, 1), (2,))
    """
    pads = tuple(int(x) for x in pads)
    half = len(pads) // 2
    if not pads or len(pads) % 2:
        return None
    if pads[:half] == pads[half:]:
        return pads[:half]
    return (0, pads[0], 0, pads[1]) if half == 1 else pads if half == 2 else None


def float_array(data: Any, kind: str) -> Array:
    """Return the numbers in a buffer: floats of 16 bits as float32, exactly.

    Args:
        data: bytes.
        kind: a NumPy type such as ``"<f4"``, or ``"bf16"``.
    """
    if kind == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(data, kind)
    return values.astype(np.float32) if values.dtype == np.float16 else values
