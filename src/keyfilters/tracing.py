"""What a network computes in a forward pass, recorded as a list.

Hooks on modules see too little: some convolutions pad inside their own forward pass. So the calls
of torch functions themselves are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor, cat, concat, nn
from torch.nn.functional import conv1d, conv2d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from keyfilters.passes import on_example, run

__all__ = ["ConvCall", "Step", "batchnorms_behind", "consumers", "conv_calls", "steps"]

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
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


def consumers(found: Iterable[Step]) -> dict[nn.Module, list[nn.Module | None]]:
    """Return what takes the output of each convolution in a forward pass, in order.

    Returns:
        Every convolution called -> for each use of its output the layer that has it as input, or
        None for anything else.
    """
    makers: dict[int, nn.Module] = {}
    uses: dict[nn.Module, list[nn.Module | None]] = {}
    for by, inputs, output in found:
        for place, tensor in enumerate(inputs):
            if (maker := makers.get(id(tensor))) is not None:
                uses[maker].append(by if isinstance(by, nn.Module) and place == 0 else None)
        if isinstance(by, _ConvNd) and isinstance(output, Tensor):
            makers[id(output)] = by
            uses.setdefault(by, [])
    return uses


def batchnorms_behind(model: nn.Module, convs: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """Return the dotted name of the batch normalisation behind each convolution, or "".

    It is found in the forward pass of a copy on an example or, where no example can be made, in the
    order of registration: the next one that the convolution's own parent registers, with as many
    features as the convolution has outputs, and before the parent's next convolution or linear
    layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.BatchNorm2d(8))
    >>> list(batchnorms_behind(net, [net[0]]).values())
    ['2']
    """
    traced = on_example(model, _traced) or {}
    paths = {module: path for path, module in model.named_modules()}
    return {c: traced.get(paths[c]) or _registered_behind(model, paths[c]) for c in convs}


def _traced(twin: nn.Module, images: Tensor) -> dict[str, str]:
    """Return the name of the one batch normalisation that all calls of a convolution lead to.

    Between the two there may be functions of one tensor that keep its channels, such as
    activations, and concatenations, but no sum and no other layer.
    """
    found = steps(twin, images)
    sources: dict[int, frozenset[nn.Module]] = {}  # convolutions that a tensor comes from
    norms: dict[nn.Module, set[nn.Module]] = {}
    for by, inputs, output in found:
        known = [sources[id(x)] for x in inputs if id(x) in sources]
        if isinstance(by, _BatchNorm):
            for conv in known[0] if known else ():
                norms.setdefault(conv, set()).add(by)
        elif isinstance(by, _ConvNd):
            sources[id(output)] = frozenset([by])
        elif not isinstance(by, nn.Module) and known and isinstance(output, Tensor):
            same = len(inputs) == 1 and output.shape[:2] == inputs[0].shape[:2]
            if same or by in (cat, concat):
                sources[id(output)] = frozenset().union(*known)
    names = {module: name for name, module in twin.named_modules()}
    return {
        names[conv]: names[next(iter(behind))]
        for conv, behind in norms.items()
        if len(behind) == 1 and isinstance(next(iter(behind)), NORMS)
    }


def _registered_behind(model: nn.Module, name: str) -> str:
    conv, path = model.get_submodule(name), name.rpartition(".")[0]
    children = list(model.get_submodule(path).named_children())
    place = [module for _, module in children].index(conv) if name else len(children)
    for child, module in children[place + 1 :]:
        if isinstance(module, (_ConvNd, nn.Linear)):
            break
        if isinstance(module, NORMS) and module.num_features == conv.out_channels:
            return f"{path}.{child}" if path else child
    return ""


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
