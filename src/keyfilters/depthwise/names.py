"""The network inside its wrappers, and the names of its parts without them."""

from __future__ import annotations

from torch import nn

__all__ = ["clean_name", "unwrapped"]

WRAPPED = ("module", "_orig_mod")  # DataParallel, DDP, AveragedModel, EMA; torch.compile


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DDP, torch.compile, AveragedModel or an EMA.

    A wrapper has one child, called ``module`` or ``_orig_mod``, and no parameter of its own.

    >>> inner = nn.Sequential(nn.Conv2d(3, 8, 1))
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    while True:
        children = dict(module.named_children())
        name = next(iter(children), "")
        if len(children) != 1 or name not in WRAPPED or module._parameters:
            return module
        module = children[name]


def clean_name(name: str) -> str:
    """Return a dotted name without the parts that torch.compile adds.

    >>> clean_name("features._orig_mod.0")
    'features.0'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
