"""Tensors of pickles: where they lie in the file, and the tensor itself once it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyfilters.sources.pickles import Global, Thing

__all__ = ["REBUILD", "Storage", "StoredTensor", "as_tensor"]

DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8, "Bool": torch.bool, "QInt8": torch.int8, "QUInt8": torch.uint8,
    "QInt32": torch.int32, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
LARGEST = 2**22  # elements of a tensor that repeats its numbers


@dataclass(eq=False)
class Storage:
    """Numbers in a file.

    Attributes:
        kind: name of the storage's class, such as ``"torch.FloatStorage"``.
        load: returns a writable buffer of bytes; called once.
        offset: of a view, in elements.
    """

    kind: str
    load: Callable[[], Any]
    offset: int = 0
    held: Any = None

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the numbers as a tensor of one dimension."""
        if self.held is None:
            self.held = self.load()
        name = self.kind.rpartition(".")[2].removesuffix("Storage")
        dtype = dtype or DTYPES.get(name, torch.uint8)
        data = self.held
        count = len(data) // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=count)


@dataclass(eq=False)
class StoredTensor:
    """A tensor that is not loaded."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    quantiser: Any = None
    dtype: torch.dtype | None = None

    def tensor(self) -> Tensor:
        """Return the tensor, on the numbers of the file where it can.

        Raises:
            ValueError: it leads out of its storage.
        """
        flat = self.storage.tensor(self.dtype)
        offset = self.offset + self.storage.offset
        numbers = (*self.shape, *self.stride, offset)
        count = prod(self.shape)
        if (
            len(self.shape) != len(self.stride)
            or min(numbers) < 0
            or count > max(LARGEST, len(flat))
        ):
            raise ValueError(f"a tensor of shape {self.shape} and strides {self.stride}")
        pairs = zip(self.shape, self.stride, strict=True)
        last = offset + sum((size - 1) * step for size, step in pairs)
        if prod(self.shape) and last >= len(flat):
            raise ValueError(f"a tensor of shape {self.shape} leads out of its {len(flat)} numbers")
        stored = torch.as_strided(flat, self.shape, self.stride, offset)
        return stored if self.quantiser is None else self._quantised(stored)

    def _quantised(self, stored: Tensor) -> Tensor:
        """Return the real numbers that integers stand for, as PyTorch computes them."""
        kind = self.quantiser[0].name.rpartition(".")[2]
        if kind == "per_tensor_affine":
            scale, zero = float(self.quantiser[1]), int(self.quantiser[2])
            return (stored.float() - zero) * scale
        scales, zeros = (as_tensor(x) for x in self.quantiser[1:3])
        if scales is None or zeros is None:
            raise ValueError("quantised weights without scales")
        axis = int(self.quantiser[3])
        extents = [-1 if i == axis else 1 for i in range(stored.ndim)]
        shifted = stored.float() - zeros.float().reshape(extents)
        return (shifted * scales.reshape(extents)).float()


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor of what is one, in a file, in memory or as an array; None of what is not."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, StoredTensor):
        return value.tensor()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        if value.dtype == np.longdouble:
            return None
        as_it_is = (
            value.dtype.isnative and value.flags.writeable and min(value.strides, default=0) >= 0
        )
        if not as_it_is:
            value = np.array(value, value.dtype.newbyteorder("="))
        return torch.from_numpy(value)  # which shares its memory, so that it can be written to
    return None


def _tensor(args: Any) -> Any:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        return Thing("tensor", args)
    dtype = _dtype(args[6]) if len(args) > 6 and isinstance(args[6], Global) else None
    return StoredTensor(storage, int(offset), _ints(shape), _ints(stride), dtype=dtype)


def _quantised(args: Any) -> Any:
    made = _tensor(args[:4])
    if isinstance(made, StoredTensor):
        made.quantiser = args[4]
    return made


def _sparse(args: Any) -> Tensor:
    """Return an empty sparse tensor of the same shape: the numbers of such weights are not read."""
    parts = args[1]  # (indices, values, shape, …), or (compressed indices, indices, values, shape)
    shape = _ints(next((x for x in parts[2:] if isinstance(x, (tuple, list))), None))
    try:
        return torch.empty(shape, layout=torch.sparse_coo)
    except RuntimeError as error:
        raise ValueError(f"a sparse tensor of shape {shape}") from error


def _dtype(name: Global) -> torch.dtype | None:
    found = getattr(torch, name.name.rpartition(".")[2], None)
    return found if isinstance(found, torch.dtype) else None


def _ints(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not all(isinstance(x, int) for x in values):
        raise ValueError(f"expected sizes, got a {type(values).__name__}")
    return tuple(values)


def _from_type(args: Any) -> Any:
    """Return what a function that is known makes of a subclass of Tensor."""
    known = REBUILD.get(args[0].name) if isinstance(args[0], Global) else None
    return known(args[2]) if known else Thing("tensor subclass", args)


@dataclass(eq=False)
class _Array(Thing):
    """An array of NumPy, whose shape, type and bytes follow."""


def array_of(thing: Thing) -> Any:
    """Return the array that a pickle of NumPy holds, or the thing itself."""
    if not isinstance(thing, _Array) or not isinstance(thing.state, tuple) or len(thing.state) < 5:
        return thing
    _, shape, dtype, fortran, data = thing.state[:5]
    return _array(data, dtype, shape, "F" if fortran is True else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> Any:
    if isinstance(data, str):
        data = data.encode("latin-1")
    text = dtype.args[0] if isinstance(dtype, Thing) and dtype.args else ""
    if (
        not isinstance(text, str)
        or text[:1] not in "fiub"
        or not isinstance(data, (bytes, bytearray))
    ):
        return Thing("array")
    swap = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    kind = np.dtype(text).newbyteorder(">" if swap else "<")
    shape = _ints(shape)
    if prod(shape) * kind.itemsize != len(data) or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(bytes(data), kind).reshape(shape, order="F" if order == "F" else "C")


def _encode(args: Any) -> Any:
    return args[0].encode("latin-1") if isinstance(args[0], str) else b""


def _ordered(args: Any) -> Any:
    pairs = args[0] if args and isinstance(args[0], (list, tuple)) else []
    return {x[0]: x[1] for x in pairs if isinstance(x, (tuple, list)) and _is_pair(x)}


def _is_pair(x: Any) -> bool:
    return len(x) == 2 and isinstance(x[0], (str, int))


def _first(args: Any) -> Any:
    return args[0] if args else []


def _buffer(args: Any) -> Any:
    """Return an array that NumPy wrote with the axes in the order of memory (K)."""
    data, dtype, shape, order, axes = (*args, None)[:5]
    made = _array(data, dtype, shape, order)
    permuted = order == "K" and axes is not None and isinstance(made, np.ndarray)
    return made.transpose(_ints(axes)) if permuted else made


REBUILD: Mapping[str, Callable[[Any], Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda args: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_xla_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": lambda args: _from_type((args[0], None, args[2])),
    **{
        f"torch.jit._pickle.{name}": _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
    },
    "torch.jit._pickle.restore_type_tag": _first,
    "_codecs.encode": _encode,
    **{
        f"numpy.{core}.multiarray._reconstruct": lambda args: _Array("array", args)
        for core in ("core", "_core")
    },
    **{f"numpy.{core}.numeric._frombuffer": _buffer for core in ("core", "_core")},
    "builtins.set": _first,
    "__builtin__.set": _first,
    "builtins.list": _first,
    "builtins.tuple": _first,
    "torch.Size": _first,
}
