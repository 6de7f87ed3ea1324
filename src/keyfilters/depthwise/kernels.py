"""What every convolution of a module convolves with, and where it stands in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from keyfilters.depthwise.branches import METHODS, branch_notes
from keyfilters.depthwise.forms import Form, Quantised, form_of, why_not_writable
from keyfilters.depthwise.programs import exported_kernels, scripted_kernels
from keyfilters.depthwise.shapes import COMPLEX, NO_DATA, ConvShape, why_not_depthwise
from keyfilters.errors import KeyFiltersError
from keyfilters.passes import call_order, clean_name, unwrapped

__all__ = ["Kernel", "depthwise_layers", "kernels"]

LAZY = "lazy convolution that has no weights before its first forward pass"


@dataclass(frozen=True, eq=False)
class Kernel:
    """One convolution of a module, and the answer to what its weight is.

    Attributes:
        name: dotted, without the prefixes of wrappers.
        module: the convolution, or the module that holds its weight; None for a tensor alone.
        shape: its geometry, of one dimension as 1×k; None where it cannot be told.
        form: how its kernel is stored; None where it is not depthwise or cannot be read.
        stride: ``(y, x)``.
        dilation: ``(y, x)``.
        not_depthwise: why it is not a depthwise convolution; empty for one.
        unreadable: why the kernel of a depthwise convolution cannot be read; empty if it can.
        unwritable: why no kernel can be written to it; empty if one can.
        owner: name of the depthwise convolution before it that has the same stored tensors.
        depth: relative place in [0, 1] among all depthwise convolutions of the module.
        note: what a reader should know.
        ndim: number of its dimensions; a kernel of one is stored as ``(C, 1, k)``.
    """

    name: str
    module: nn.Module | None
    shape: ConvShape | None = None
    form: Form | None = None
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    not_depthwise: str = ""
    unreadable: str = ""
    unwritable: str = ""
    owner: str = ""
    depth: float = 0.0
    note: str = ""
    ndim: int = 2

    @property
    def depthwise(self) -> bool:
        """Whether it is a depthwise convolution of one or two dimensions, readable or not."""
        return not self.not_depthwise

    @property
    def plain(self) -> bool:
        """Whether one stored tensor is the kernel itself."""
        return self.form is not None and not self.form.how

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored tensors that make the kernel, by their name inside the convolution."""
        return {} if self.form is None else self.form.stored()

    def read(self) -> Tensor:
        """Return the kernel that is convolved with, ``(C, 1, k_y, k_x)``, in evaluation mode."""
        if self.form is None:
            raise KeyFiltersError(f"{self.name}: {self.unreadable or self.not_depthwise}")
        kernel = self.form.read()
        return kernel[:, :, None] if kernel.ndim == 3 else kernel

    def plan(self, kernel: Tensor) -> Callable[[], None]:
        """Check that ``(C, 1, k_y, k_x)`` can be stored here and return what writes it, in place.

        Raises:
            KeyFiltersError: this cannot be stored here.
        """
        if self.form is None or self.unwritable:
            raise KeyFiltersError(f"{self.name}: {self.unwritable or self.unreadable}")
        kernel = kernel[:, :, 0] if self.ndim == 1 else kernel
        try:
            return partial(self._store_, self.form.plan(kernel))
        except KeyFiltersError as error:
            hint = f"; type {self.form.undo} first" if self.form.undo else ""
            raise KeyFiltersError(f"{self.name}: {error}{hint}") from error

    def _store_(self, planned: dict[str, Tensor]) -> None:
        assert self.form is not None
        own = self.stored
        for name, value in planned.items():
            with torch.inference_mode(own[name].is_inference()), torch.no_grad():
                own[name].copy_(value)
        with torch.no_grad():
            self.form.refresh()


def kernels(module: nn.Module, *, order: bool = True) -> list[Kernel]:
    """Return every convolution of a module with what is known of its kernel.

    Args:
        module: any module; wrappers (DataParallel, torch.compile, EMA, …) are looked into.
        order: whether to run a copy on an example, so that the order is that of the forward pass.
            Where no pass can be made it is that of registration, and a note says so.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8))
    >>> [(kernel.name, kernel.not_depthwise) for kernel in kernels(net)]
    [('0', 'pointwise (1×1) convolution'), ('1', '')]
    """
    root = unwrapped(module)
    if isinstance(root, fx.GraphModule):
        listed = _in_graph(root)
    elif isinstance(root, torch.jit.ScriptModule) and (found := scripted_kernels(root)):
        listed = [_judged(_shaped(Kernel(**fields))) for fields in found]
    else:
        listed = _in_modules(root)
        if order and sum(kernel.depthwise for kernel in listed) > 1:
            listed = _by_calls(root, listed)
    return _placed(_owned(listed))


def depthwise_layers(module: nn.Module) -> Iterator[tuple[str, nn.Conv1d | nn.Conv2d]]:
    """Yield the depthwise convolutions of `module` as (dotted name, convolution).

    The order is that of registration.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8))
    >>> [name for name, conv in depthwise_layers(net)]
    ['1']
    """
    for kernel in kernels(module, order=False):
        if kernel.depthwise and isinstance(kernel.module, (nn.Conv1d, nn.Conv2d)):
            yield kernel.name, kernel.module


def _shaped(kernel: Kernel) -> Kernel:
    """Return a kernel of one dimension as 1×k, any other as it is, and why it is not depthwise."""
    shape = kernel.shape
    if shape is None:
        return kernel
    if len(shape.kernel) == 1:
        shape = replace(shape, kernel=(1, *shape.kernel))
        stride, dilation = (x and (1, x[-1]) for x in (kernel.stride, kernel.dilation))
        kernel = replace(kernel, shape=shape, ndim=1, stride=stride, dilation=dilation)
    reason = why_not_depthwise(shape)
    if reason is None:
        return kernel
    return replace(kernel, not_depthwise="1-D: " * (kernel.ndim == 1) + reason, form=None)


def _in_modules(root: nn.Module) -> list[Kernel]:
    fuses = any(callable(getattr(m, x, None)) for m in root.modules() for x in METHODS)
    notes = branch_notes(root) if fuses else {}
    found = []
    for path, module in root.named_modules():
        if ".parametrizations." in f".{path}.":
            continue
        kernel = _kernel(clean_name(path), module)
        if kernel is not None:
            found.append(replace(kernel, note=notes.get(path, "")) if kernel.depthwise else kernel)
    return found


def _in_graph(root: fx.GraphModule) -> list[Kernel]:
    """List the convolutions of a graph, modules and functions, in its order."""
    modules = {kernel.name: kernel for kernel in _in_modules(root)}
    listed: dict[str, Kernel] = {}
    used = [clean_name(str(x.target)) for x in root.graph.nodes if x.op == "get_attr"]
    for name, fields in exported_kernels(root):
        if fields is None:
            listed |= {x: k for x, k in modules.items() if f"{x}.".startswith(f"{name}.")}
        else:
            listed[name] = _judged(_shaped(Kernel(**fields)))
    for name, kernel in modules.items():  # also what the graph does not call
        if kernel.shape is not None or not any(x.startswith(f"{name}.") for x in used):
            listed.setdefault(name, kernel)
    return list(listed.values())


def _kernel(name: str, module: nn.Module) -> Kernel | None:
    if isinstance(module, _ConvNd):
        stored = [*module._parameters.values(), *module._buffers.values()]
        if any(is_lazy(x) for x in stored if x is not None):
            several = module.groups > 1
            return Kernel(name, module, not_depthwise=LAZY, unwritable=LAZY if several else "")
        shape = _shape(module, module.transposed)
    elif all(hasattr(module, x) for x in ("kernel_size", "groups", "in_channels", "out_channels")):
        shape = _shape(module, "Transpose" in type(module).__name__)
    else:
        return _not_trained(name, module)
    kernel = _shaped(
        Kernel(name, module, shape, stride=_pair(module.stride), dilation=_pair(module.dilation))
    )
    if kernel.not_depthwise:
        return kernel
    try:
        if isinstance(module, _ConvNd):
            form = form_of(module)
        elif callable(getattr(module, "weight", None)) and hasattr(module, "_weight_bias"):
            form = Quantised(module)
        else:
            mixes = hasattr(module, "num_experts")
            reason = (
                f"{type(module).__name__} mixes its experts anew for every image, so it has no one "
                "kernel"
                if mixes
                else f"{type(module).__name__} is no torch.nn.Conv2d, so its kernel is not known"
            )
            return replace(kernel, unreadable=reason, unwritable=reason)
    except KeyFiltersError as error:
        return replace(kernel, unreadable=str(error), unwritable=str(error))
    return _judged(replace(kernel, form=form))


def _judged(kernel: Kernel) -> Kernel:
    """Say whether the kernel can be read and written."""
    if kernel.form is None:
        return kernel
    stored = kernel.form.stored().values()
    why = NO_DATA if any(x.is_meta for x in stored) else ""
    why = why or (COMPLEX if any(x.is_complex() for x in stored) else "")
    if why:
        return replace(kernel, form=None, unreadable=why, unwritable=why)
    return replace(kernel, unwritable=why_not_writable(kernel.form))


def _not_trained(name: str, module: nn.Module) -> Kernel | None:
    """Note tensors that look like filters in a module that is no convolution."""
    held = {**module._parameters, **module._buffers}
    for key, tensor in held.items():
        if tensor is None or is_lazy(tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
            continue
        channels, each, *taps = tensor.shape
        if each == 1 and channels > 1 and min(taps) > 1 and max(taps) < 64:
            buffer = key in module._buffers
            kind = "buffer, not trained" if buffer else "parameter of a module that is no Conv2d"
            reason = f"{key} of {type(module).__name__} has the shape of filters, but is a {kind}"
            return Kernel(name, module, not_depthwise=reason)
    return None


def _shape(module: Any, transposed: bool) -> ConvShape:
    size = module.kernel_size
    return ConvShape(
        kernel=tuple(size) if isinstance(size, (tuple, list)) else (size, size),
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        channels_per_group=module.in_channels // module.groups,
        transposed=transposed,
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, (tuple, list)) else (value, value)


def _by_calls(root: nn.Module, listed: list[Kernel]) -> list[Kernel]:
    """Put kernels in the order of the forward pass; what it does not call follows its neighbour."""
    modules = [x.module for x in listed if x.depthwise and x.module is not None]
    wanted = [x for x in modules if not isinstance(x, torch.jit.ScriptModule)]  # take no hooks
    calls = call_order(root, wanted)
    if isinstance(calls, str):
        note = f"depth follows the order of registration: {calls}"
        return [
            replace(k, note="; ".join(filter(None, [k.note, note]))) if k.depthwise else k
            for k in listed
        ]
    keys, last = [], -1
    for i, kernel in enumerate(listed):
        if kernel.depthwise and kernel.module is not None:
            last = calls.get(kernel.module, last)
        keys.append((last, i))
    return [kernel for _, kernel in sorted(zip(keys, listed, strict=True), key=lambda x: x[0])]


def _owned(listed: list[Kernel]) -> list[Kernel]:
    """Note which kernels are the same numbers in memory; all of them live, so addresses hold."""
    owners: dict[object, str] = {}
    result = []
    for kernel in listed:
        if kernel.form is None:
            result.append(kernel)
            continue
        key = tuple(map(_place, kernel.form.stored().values()))
        owner = owners.setdefault(key, kernel.name)
        result.append(kernel if owner == kernel.name else replace(kernel, owner=owner))
    return result


def _place(tensor: Tensor) -> tuple[object, ...]:
    if tensor.is_quantized or not tensor.numel():
        return (id(tensor),)
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _placed(listed: list[Kernel]) -> list[Kernel]:
    depthwise = sum(kernel.depthwise for kernel in listed)
    depths = iter(i / max(depthwise - 1, 1) for i in range(depthwise))
    return [replace(x, depth=next(depths)) if x.depthwise else x for x in listed]
