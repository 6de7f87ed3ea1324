"""Which layer takes the output of which convolution: by a forward pass, or by registration."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, cat, concat, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from keyfilters.depthwise import Kernel
from keyfilters.passes import on_example
from keyfilters.tracing import Step, steps

__all__ = ["batchnorms_behind", "consumers", "following_batchnorm"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


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


def batchnorms_behind(model: nn.Module, kernels: Iterable[Kernel]) -> dict[str, str]:
    """Return the dotted name of the batch normalisation behind each convolution, or "".

    It is found in the forward pass of a copy on an example or, where no example can be made, in the
    order of registration (`following_batchnorm`).
    """
    traced = on_example(model, _traced) or {}
    paths = {module: path for path, module in model.named_modules()}
    found = {}
    for kernel in kernels:
        assert kernel.module is not None
        path = paths[kernel.module]
        found[kernel.name] = traced.get(path) or following_batchnorm(model, path)
    return found


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


def following_batchnorm(model: nn.Module, name: str) -> str:
    """Return the dotted name of the batch normalisation registered behind a convolution, or "".

    It is the next `torch.nn.BatchNorm2d` (or BatchNorm1d, SyncBatchNorm) that the convolution's own
    parent registers, with as many features as the convolution has outputs, and before the parent's
    next convolution or linear layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.BatchNorm2d(8))
    >>> following_batchnorm(net, "0")
    '2'
    """
    conv, path = model.get_submodule(name), name.rpartition(".")[0]
    children = list(model.get_submodule(path).named_children())
    place = [module for _, module in children].index(conv) if name else len(children)
    for child, module in children[place + 1 :]:
        if isinstance(module, (_ConvNd, nn.Linear)):
            break
        if isinstance(module, NORMS) and module.num_features == conv.out_channels:
            return f"{path}.{child}" if path else child
    return ""
