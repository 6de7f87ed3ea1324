"""Where all readers meet: convolutions go in, the bank of one model comes out."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from keyfilters.bank import FilterBank, Layer
from keyfilters.depthwise import ConvShape, why_not_depthwise

__all__ = ["Collector"]


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

    def offer(
        self,
        name: str,
        shape: ConvShape,
        weight: Callable[[], NDArray[np.generic]],
        *,
        stride: tuple[int, int] | None = None,
        dilation: tuple[int, int] | None = None,
        identity: Hashable = None,
        note: str = "",
    ) -> None:
        """Take a convolution if it is depthwise, otherwise note the reason.

        Args:
            name: the layer's name as its format spells it.
            shape: what the format tells about the convolution.
            weight: returns the weights, reshapable to ``(C, k_y, k_x)``; called for depthwise
                convolutions only, so that other weights are never loaded.
            stride: ``(y, x)`` or None.
            dilation: ``(y, x)`` or None.
            identity: equal for two layers that share one parameter, which is then counted once.
            note: what a reader should know about this layer.
        """
        reason = why_not_depthwise(shape)
        if reason is None and identity is not None and identity in self._owner:
            reason = f"shares its weights with {self._owner[identity]}, counted once"
        if reason is not None:
            self.skip(name, reason)
            return
        if identity is not None:
            self._owner[identity] = name
        stored = np.asarray(weight()).reshape(shape.out_channels, *shape.kernel)
        if stored.dtype == np.float64:
            note = "; ".join(filter(None, [note, "stored as float64, rounded to float32"]))
        filters = np.array(stored, dtype=np.float32, order="C")  # a copy: the model may train on
        filters.flags.writeable = False
        self._layers.append(
            Layer(self.model, name, filters, stride, dilation, 0.0, shape.multiplier, note)
        )

    def skip(self, name: str, reason: str) -> None:
        """Note something that was seen and not taken."""
        self.skipped.append((f"{self.model}/{name}" if name else self.model, reason))

    def bank(self) -> FilterBank:
        """Return what was gathered, with relative depths from 0 (first layer) to 1 (last)."""
        last = max(len(self._layers) - 1, 1)
        layers = [replace(layer, depth=i / last) for i, layer in enumerate(self._layers)]
        return FilterBank(layers, self.skipped)
