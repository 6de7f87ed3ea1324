"""What a network computes in a forward pass, recorded as a list.

Hooks on modules see too little: some convolutions pad inside their own forward pass. So the calls
of torch functions themselves are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from keyfilters.passes import run

__all__ = ["ConvCall", "Step", "conv_calls", "steps"]

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
ATTRIBUTES = ("__get__", "dim", "size", "is_floating_point")  # calls that only ask for a shape


class ConvCall(NamedTuple):
    """The arguments of a call of ``conv1d`` or ``conv2d``, and the module that made it."""

    module: nn.Module
    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class Step(NamedTuple):
    """A layer (convolution, batch normalisation, linear), or a function called outside of them."""

    by: nn.Module | Callable[..., Any]
    inputs: list[Tensor]
    output: Any


def conv_calls(
    model: Callable[[Tensor], Any],
    convs: Iterable[nn.Module],
    images: Tensor,
    expected: Mapping[nn.Module, int] | None = None,
) -> list[ConvCall]:
    """Run a network and return the convolutions (1-D, 2-D) that some of its modules call, in order.

    A module that the forward pass never uses is missing; one that it uses several times is there
    as often.

    Args:
        model: the network.
        convs: modules of it.
        images: one batch.
        expected: how often each is called, after which the pass ends; None runs it to its end.
    """
    recorder = _ConvCalls(convs, dict(expected or {}))
    with suppress(_AllSeenError), recorder:
        run(model, images)
    return recorder.found


def steps(model: nn.Module, images: Tensor) -> list[Step]:
    """Run a network and return what it computes, layer by layer, in order.

    All tensors stay alive with the list, so that they can be told apart by ``id``.
    """
    kinds = (_ConvNd, _BatchNorm, nn.Linear)
    recorder = _Steps(module for module in model.modules() if isinstance(module, kinds))
    with recorder:
        run(model, images)
    return recorder.found


class _AllSeenError(Exception):
    """Ends a forward pass once all expected calls were seen."""


class _Recorder(TorchFunctionMode):
    """Knows at every call of a torch function inside which modules it happens."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []
        self.modules = list(modules)

    def __enter__(self) -> Any:
        self.handles = [x.register_forward_pre_hook(self.enter) for x in self.modules]
        self.handles += [x.register_forward_hook(self.leave) for x in self.modules]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, _: Any) -> None:
        self.inside.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()


class _ConvCalls(_Recorder):
    def __init__(self, convs: Iterable[nn.Module], waiting: dict[nn.Module, int]) -> None:
        super().__init__(convs)
        self.waiting = waiting
        self.found: list[ConvCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (conv1d, conv2d) and self.inside:
            module = self.inside[-1]
            given = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
            self.found.append(ConvCall(module, **given))
            if module in self.waiting:
                self.waiting[module] -= 1
            if self.waiting and max(self.waiting.values()) <= 0:
                raise _AllSeenError
        return func(*args, **(kwargs or {}))


class _Steps(_Recorder):
    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)
        self.found: list[Step] = []

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        super().leave(module, args, output)
        if not self.inside:
            self.found.append(Step(module, list(_tensors(args)), output))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside and getattr(func, "__name__", "") not in ATTRIBUTES:
            self.found.append(Step(func, list(_tensors((args, kwargs))), result))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
