"""What goes into a convolution and where its output goes, seen while the model runs.

Hooks on modules see too little: some convolutions pad inside their own forward pass. So the calls
of `torch.nn.functional` themselves are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from keyfilters.passes import run

__all__ = ["Call", "calls_of", "consumers", "norms_behind"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a depthwise convolution.

    Attributes:
        input: ``(B, C_in, H, W)``, padded.
        stride: ``(y, x)``.
        dilation: ``(y, x)``.
        bias: what is added, if anything.
        weight: the kernel that is convolved with, ``(C, 1, k_y, k_x)``.
    """

    input: Tensor
    stride: tuple[int, int]
    dilation: tuple[int, int]
    bias: Tensor | None
    weight: Tensor

    def patches(self, count: int, generator: torch.Generator) -> Tensor:
        """Cut out what the filters see at random places of the output, the same in all images.

        Args:
            count: places, at most; fewer where the output is smaller.
            generator: picks them.

        Returns:
            ``(C_in, taps, B * places)``.
        """
        k_y, k_x = self.weight.shape[2:]
        (s_y, s_x), (d_y, d_x) = self.stride, self.dilation
        height = (self.input.shape[2] - d_y * (k_y - 1) - 1) // s_y + 1
        width = (self.input.shape[3] - d_x * (k_x - 1) - 1) // s_x + 1
        places = torch.randperm(height * width, generator=generator)[:count].to(self.input.device)
        y, x = places // width * s_y, places % width * s_x
        taps = [self.input[:, :, y + i * d_y, x + j * d_x] for i in range(k_y) for j in range(k_x)]
        return torch.stack(taps).permute(2, 0, 1, 3).flatten(2)


class _SeenError(Exception):
    """Ends a forward pass once all calls were seen."""


class _Watch(TorchFunctionMode):
    """Keeps the calls of ``conv2d`` that given convolutions make, until all expected were seen."""

    def __init__(self, waiting: dict[str, int]) -> None:
        super().__init__()
        self.waiting = dict(waiting)
        self.inside: list[str] = []
        self.calls: list[tuple[str, Call]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is conv2d and self.inside:
            name = self.inside[-1]
            self.calls.append((name, _call(_arguments(args, kwargs))))
            if name in self.waiting:
                self.waiting[name] -= 1
            if self.waiting and max(self.waiting.values()) <= 0:
                raise _SeenError
        return func(*args, **(kwargs or {}))


def calls_of(
    model: nn.Module,
    convs: Mapping[str, nn.Module],
    images: Tensor,
    expected: Mapping[str, int] | None = None,
) -> list[tuple[str, Call]]:
    """Run a model and return the calls of some of its convolutions, in order.

    A convolution that the forward pass never uses is missing; one that it uses several times is
    there as often.

    Args:
        model: the network.
        convs: convolutions of it, by name.
        images: one batch.
        expected: how often each is called, after which the pass may end; None runs it to its end.
    """
    watch = _Watch(dict(expected or {}))

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: watch.inside.append(name)

    def leave(*_: Any) -> None:
        watch.inside.pop()

    handles = []
    for name, conv in convs.items():
        handles.append(conv.register_forward_pre_hook(enter(name)))
        handles.append(conv.register_forward_hook(leave))
    try:
        with suppress(_SeenError), watch:
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return watch.calls


def consumers(model: nn.Module, images: Tensor) -> dict[nn.Module, list[nn.Module | None]]:
    """Find the modules that take the output of each convolution.

    Returns:
        Every convolution called -> what takes its output, in order: a batch normalisation or a
        convolution of the model, or None for anything else.
    """
    owners: dict[int, nn.Module] = {}
    inside: list[nn.Module] = []
    for module in model.modules():
        for name in ("running_mean", "weight"):
            # Not by getattr: a parametrised weight is a new tensor at every access.
            tensor = module._buffers.get(name, module._parameters.get(name))
            if tensor is not None:
                owners.setdefault(id(tensor), module)
    made: dict[int, tuple[Tensor, nn.Module]] = {}  # output -> itself, so that no id is used again
    found: dict[nn.Module, list[nn.Module | None]] = {}

    def owner_of(func: Any, args: Any, kwargs: Any) -> nn.Module | None:
        if inside:
            return inside[-1]
        if func is batch_norm:
            mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
            return owners.get(id(mean))
        return owners.get(id(_arguments(args, kwargs)["weight"])) if func is conv2d else None

    class Trace(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            taken = [x for x in _tensors((args, kwargs)) if id(x) in made]
            for tensor in taken if not _is_attribute(func) else ():
                main = bool(args) and tensor is args[0] and func in (batch_norm, conv2d)
                found[made[id(tensor)][1]].append(owner_of(func, args, kwargs) if main else None)
            result = func(*args, **kwargs)
            if func is conv2d and (conv := owner_of(func, args, kwargs)) is not None:
                made[id(result)] = (result, conv)
                found.setdefault(conv, [])
            return result

    handles = []
    for module in model.modules():
        if isinstance(module, (_ConvNd, _BatchNorm)):
            handles.append(module.register_forward_pre_hook(lambda m, _: inside.append(m)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        with Trace():
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def norms_behind(model: nn.Module, images: Tensor) -> dict[nn.Module, nn.Module]:
    """Find the batch normalisation behind each convolution, in the order of the forward pass.

    Between the two there may be operations on one tensor that keep its channels, such as
    activations, and concatenations, but no sum and no other layer with weights.

    Returns:
        Convolution -> batch normalisation, where all calls of the convolution lead to one alone.
    """
    marks: dict[int, tuple[Tensor, frozenset[nn.Module]]] = {}
    inside: list[nn.Module] = []
    found: dict[nn.Module, set[nn.Module]] = {}

    class Trace(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if inside or not isinstance(result, Tensor) or _is_attribute(func):
                return result
            tensors = list(_tensors((args, kwargs or {})))
            marked = [marks[id(x)][1] for x in tensors if id(x) in marks]
            joins = func in (torch.cat, torch.concat)
            same = len(tensors) == 1 and result.shape[:2] == tensors[0].shape[:2]
            if marked and (joins or same):
                marks[id(result)] = (result, frozenset().union(*marked))
            return result

    def enter(module: nn.Module, args: Any) -> None:
        if not inside and isinstance(module, _BatchNorm) and args and id(args[0]) in marks:
            for conv in marks[id(args[0])][1]:
                found.setdefault(conv, set()).add(module)
        inside.append(module)

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        inside.pop()
        if not inside and isinstance(module, _ConvNd) and isinstance(output, Tensor):
            marks[id(output)] = (output, frozenset([module]))

    handles = []
    for module in model.modules():
        if isinstance(module, (_ConvNd, _BatchNorm, nn.Linear)):
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
    try:
        with Trace():
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return {conv: next(iter(norms)) for conv, norms in found.items() if len(norms) == 1}


def _is_attribute(func: Any) -> bool:
    """Whether a call only asks for something like a shape."""
    return getattr(func, "__name__", "") in ("__get__", "dim", "size", "is_floating_point")


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _arguments(args: Any, kwargs: Any) -> dict[str, Any]:
    return {"bias": None} | dict(zip(_NAMES, args, strict=False)) | (kwargs or {})


def _call(given: dict[str, Any]) -> Call:
    stride, dilation = (_pair(given.get(name, 1)) for name in ("stride", "dilation"))
    padding, weight = given.get("padding", 0), given["weight"]
    images: Tensor = given["input"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        (top, left) = (t // 2 for t in total)
        images = pad(images, (left, total[1] - left, top, total[0] - top))
    elif padding not in ("valid", 0):
        y, x = _pair(padding)
        images = pad(images, (x, x, y, y))
    return Call(images, stride, dilation, given["bias"], weight.detach())


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])
