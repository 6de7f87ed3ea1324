"""Reading a state dict: names and shapes are all there is.

The shape ``(C, 1, k_y, k_x)`` is that of a depthwise weight, but also that of a convolution of a
one-channel image and of a transposed depthwise convolution; every layer read from a state dict
carries a note that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.sources.collect import BY_NAME, SHAPE_ONLY, Collector, Geometry, natural_order
from keyfilters.sources.parametrised import made_kernels
from keyfilters.sources.torch_tensors import as_tensor
from keyfilters.sources.weight_sets import WRAPPERS, choose_set, weight_sets

__all__ = ["FIRST", "WRAPPERS", "read_state_dict", "to_array", "unwrap", "why_too_large"]

LONGEST = 1000  # characters of a name
PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile

# Buffers with the shape of filters: fixed blur and Gabor kernels, masks, tables of positions.
_FIXED = (
    r"filt|blur\w*|gauss\w*|gabor\w*|sobel\w*|haar\w*|wavelet\w*|kernel_?mask|mask|masks|\w*_mask"
)
FIXED = re.compile(rf"(^|[._])({_FIXED})$")
BUFFERS = re.compile(
    rf"(^|[._])({_FIXED}|pos_?embed\w*|\w*position\w*|relative_\w+|rel_pos\w*|rope\w*|freqs?\w*|"
    r"anchors?|window|grid|\w*table|\w*_tokens?|running_\w+)$"
)
FIRST = "the file's first convolution, so probably one of a one-channel image and not depthwise"


def unwrap(checkpoint: Any, chosen: str = "") -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Find the state dict inside a checkpoint and clean its names.

    Args:
        checkpoint: a state dict, or what holds one or several at any depth: mappings, lists, what
            `keyfilters.sources.torch_files.load_torch` returns.
        chosen: the name of a set of weights; empty for the default of `choose_set`.

    Returns:
        The tensors by name without ``module.`` and ``_orig_mod.`` prefixes, and ``(key, reason)``
        of every other set of weights in the checkpoint, which was not read.

    Raises:
        SourceError: there are no tensors, or no such set.

    >>> tensors, others = unwrap({"epoch": 3, "state_dict": {"module.conv.weight": torch.ones(2)}})
    >>> list(tensors), others
    (['conv.weight'], [])
    """
    found = _found(checkpoint, chosen)
    return found.tensors, found.others


@dataclass
class _Found:
    tensors: dict[str, Tensor]
    geometry: Mapping[str, Geometry]
    others: list[tuple[str, str]]
    note: str


def _found(checkpoint: Any, wanted: str) -> _Found:
    sets, states = weight_sets(checkpoint)
    if not sets:
        keys = "no mapping"
        if isinstance(checkpoint, Mapping):
            keys = f"keys {', '.join(map(str, list(checkpoint)[:8])) or 'none'}"
        raise SourceError(f"no weights found: expected a state dict, got a file of {keys}")
    chosen = choose_set(sets, states, wanted)
    held = chosen.set
    names = {name: name for name in held.tensors}
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in names)), None):
        names = {name.removeprefix(prefix): old for name, old in names.items()}
    cut = max((len(old) - len(name) for name, old in names.items()), default=0)
    geometry = {layer[cut:]: told for layer, told in held.geometry.items()}
    tensors: dict[str, Tensor] = {}
    others = list(chosen.others)
    for name, old in names.items():
        if (tensor := as_tensor(held.tensors[old])) is None:
            continue
        if len(name) <= LONGEST:
            tensors[name] = tensor
        else:
            others.append((f"{name[:40]}…", f"its name has {len(name):,} characters"))
    note = ""
    if len(sets) > 1:
        note = f"of {len(sets)} sets of weights {held.name or 'the top'!r}: {chosen.why}"
    return _Found(tensors, geometry, others, note)


def read_state_dict(
    checkpoint: Any, model: str, *, in_model_order: bool = True, chosen: str = ""
) -> FilterBank:
    """Read the depthwise filters of a plain or wrapped state dict.

    Args:
        checkpoint: see `unwrap`; tensors are copied and never altered.
        model: name of the model in the bank's tables.
        in_model_order: whether the mapping's order is the model's own. If it is not, the layers are
            put in the natural order of their names (2 before 10).
        chosen: see `unwrap`.

    Raises:
        SourceError: there are no tensors, or no such set.

    >>> bank = read_state_dict({"conv.weight": torch.ones(8, 1, 5, 5)}, "net")
    >>> bank.sizes
    {(5, 5): 8}
    """
    found = _found(checkpoint, chosen)
    tensors = found.tensors
    collector = Collector(model)
    for key, reason in found.others:
        collector.skip(key, reason)
    first, done = in_model_order, set()
    made, parts = made_kernels(tensors)
    for name in tensors if in_model_order else sorted(tensors, key=natural_order):
        stored, layer, note = tensors[name], re.sub(r"(^|\.)weight$", "", name) or name, ""
        geometry = found.geometry.get(name.removesuffix("weight").removesuffix("."))
        if name in parts:
            layer = parts[name]
            if layer in done:
                continue
            done.add(layer)
            kernel, note = made[layer], "its kernel is made of several stored tensors"
            if isinstance(kernel, str):
                collector.skip(layer, kernel)
                continue
            stored, geometry = kernel, found.geometry.get(layer)
        elif geometry is None and not _may_be_convolution(name, stored):
            if _looks_like_filters(stored):
                collector.skip(name, "has the shape of filters, but the name of a buffer")
            continue
        if geometry is not None and stored.ndim < 3:
            continue
        shape_note = "" if geometry else FIRST if first else SHAPE_ONLY
        order = "" if in_model_order else BY_NAME
        notes = "; ".join(filter(None, [shape_note, note, order, found.note]))
        if reason := _why_unreadable(stored):
            collector.skip(name, reason)
            continue
        first = False
        _offer(collector, layer, stored, geometry, notes)
    return collector.bank()


def _offer(
    collector: Collector, name: str, stored: Tensor, geometry: Geometry | None, note: str
) -> None:
    tensor = stored.dequantize() if stored.is_quantized else stored
    alive = stored is tensor
    layout = "io" if geometry and geometry.transposed else "oi"
    try:
        collector.kernel(
            name,
            layout + "zyx"[5 - tensor.ndim :],
            tuple(tensor.shape),
            lambda: to_array(tensor),
            geometry,
            identity=(tensor.data_ptr(), tensor.shape, tensor.stride()) if alive else None,
            note=note,
        )
    except ValueError as error:
        collector.skip(name, str(error))


def _why_unreadable(tensor: Tensor) -> str:
    if tensor.layout != torch.strided:
        how = "in the layout of MKL-DNN" if tensor.is_mkldnn else "as a sparse tensor"
        return f"weights stored {how}; pass tensor.to_dense()"
    if tensor.is_meta:
        return "it has no data (meta device); load the weights first"
    if not tensor.is_floating_point() and not tensor.is_quantized:
        return f"{tensor.dtype} weights without scales"
    return why_too_large(tensor) if tensor.shape[1] == 1 else ""


def why_too_large(tensor: Tensor) -> str:
    """Return why a tensor cannot be read as float32; empty where it can.

    >>> why_too_large(torch.tensor([1e300], dtype=torch.float64))
    'float64 weights beyond the range of float32'
    """
    if tensor.dtype != torch.float64 or not tensor.numel():
        return ""
    finite = tensor.detach()[torch.isfinite(tensor.detach())]
    beyond = bool((finite.abs() > torch.finfo(torch.float32).max).any())
    return "float64 weights beyond the range of float32" if beyond else ""


def to_array(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor as a NumPy array: float64 as it is, any other type exactly as float32."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, Tensor)


def _may_be_convolution(name: str, tensor: Tensor) -> bool:
    """Tell weights of 1-D, 2-D and 3-D convolutions from other tensors, as well as one can.

    Names decide where shapes do not: tokens, tables of positions and scales have as many
    dimensions, but are not called "weight".
    """
    if name.endswith(("weight", "kernel")):
        layer = name.rpartition(".")[0]  # the weight of a table of positions has two dimensions
        return tensor.ndim in (3, 4, 5) and not FIXED.search(layer) and not BUFFERS.search(name)
    if BUFFERS.search(name):
        return False
    return tensor.ndim == 4 and tensor.shape[0] > 1 and tensor.dtype != torch.bool


def _looks_like_filters(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[0] > 1 and tensor.shape[1] == 1
