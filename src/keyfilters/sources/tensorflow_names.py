"""Reading named tensors in TensorFlow's layout: names and shapes are all there is."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from keyfilters.errors import SourceError
from keyfilters.sources.collect import BY_NAME, SHAPE_ONLY, Collector, Load, natural_order

__all__ = ["SLOTS", "NamedTensor", "offer_by_name", "offer_named"]

KERNEL = re.compile(r"(^|[/._])(w|weights?|kernels?|filters?|depthwise_\w+)(:\d+)?$")
DEPTHWISE_KERNEL = re.compile(r"(^|[/._])depthwise_\w+(:\d+)?$")
# What optimisers keep beside every weight, and averages over training.
SLOTS = re.compile(
    r"(^|[/.])(\.OPTIMIZER_SLOT|_?optimizer\w*|Adam\w*|RMSProp\w*|Momentum|momentum\w*|Adagrad\w*|"
    r"Ftrl\w*|velocity|[mv]|opt_state|ExponentialMovingAverage)([/.]|$)"
)
LONGEST = 1000  # characters of a name
TAIL = "/.ATTRIBUTES/VARIABLE_VALUE"


class NamedTensor(NamedTuple):
    """A stored tensor that is loaded when needed."""

    name: str
    shape: tuple[int, ...]
    load: Load


def offer_by_name(
    collector: Collector, tensors: Iterable[NamedTensor], *, in_model_order: bool = True
) -> None:
    """Offer the kernels among named tensors.

    A name with "depthwise" tells a depthwise kernel ``(k_y, k_x, C, multiplier)``; any other is
    taken for ``(k_y, k_x, in, out)``, with one input channel in a depthwise convolution.

    Args:
        collector: takes the kernels.
        tensors: all that are stored.
        in_model_order: whether they come in the model's own order. If they do not, they are put in
            the natural order of their names (2 before 10).

    Raises:
        SourceError: there are no tensors.
    """
    if not in_model_order:
        tensors = sorted(tensors, key=lambda tensor: natural_order(tensor.name))
    order = "" if in_model_order else BY_NAME
    empty, first = True, in_model_order
    for name, shape, load in tensors:
        empty = False
        if len(shape) not in (3, 4, 5) or min(shape) < 1 or len(name) > LONGEST:
            continue
        name = name.removesuffix(TAIL)
        if SLOTS.search(name):
            if "depthwise" in name or shape[-2] == 1:
                collector.skip(name, "belongs to an optimiser or an average over training")
            continue
        if KERNEL.search(name):
            taken = offer_named(collector, name, shape, load, first=first, note=order)
            first = first and not taken
    if empty:
        raise SourceError("no weights found")


def offer_named(
    collector: Collector,
    name: str,
    shape: Sequence[int],
    load: Load,
    *,
    first: bool = False,
    identity: Hashable = None,
    note: str = "",
) -> bool:
    """Offer one kernel by its name; return whether it is that of a convolution."""
    taps = "zyx"[5 - len(shape) :]
    layer = re.sub(r"[/._]?(depthwise_)?(kernels?|weights?|filters?|w)(:0)?$", "", name) or name
    # Flax keeps a depthwise kernel as one of a convolution in groups, however it is called.
    grouped = shape[-2] == 1 < shape[-1] and not DEPTHWISE_KERNEL.search(name)
    if "depthwise" in name and "pointwise" not in name.rpartition("depthwise")[2] and not grouped:
        collector.kernel(layer, f"{taps}cm", shape, load, identity=identity, note=note)
        return True
    if len(shape) != 4 and "conv" not in name.lower():
        return False
    if shape[-2] == 1 and first:
        collector.skip(layer, "the first convolution, of a one-channel image by its shape")
        return True
    notes = [SHAPE_ONLY if shape[-2] == 1 else "", note]
    told = "; ".join(filter(None, notes))
    collector.kernel(layer, f"{taps}io", shape, load, identity=identity, note=told)
    return True
