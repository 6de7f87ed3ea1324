"""Freezing depthwise filters, with a policy for the batch normalisation behind them and a proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keyfilters.depthwise import Kernel, clean_name, kernels, unwrapped
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.surgery.norms import following_batchnorm, join, traced_batchnorms

__all__ = [
    "POLICIES",
    "Frozen",
    "digest_of",
    "following_batchnorm",
    "freeze_filters_",
    "unfreeze_filters_",
]

POLICIES = ("train", "eval", "frozen")
COLUMNS = ["layer", "size", "filters", "depth", "sha256", "bias", "batchnorm", "policy"]
MARK = "_keyfilters_frozen"  # on every module touched: parameter -> whether it was trainable


@dataclass(frozen=True, eq=False)
class Frozen:
    """What was frozen, and the means to show that it has not moved.

    Attributes:
        table: one row a layer: layer, size, filters, depth, sha256 (of the weight, 12 digits), bias
            (frozen, free or none), batchnorm (that which directly follows, or empty) and policy.
        model: the module that was frozen.
        digests: SHA-256 of every frozen tensor, by its dotted name: weights, and where they are
            frozen biases, running statistics and affine parameters.
    """

    table: pd.DataFrame
    model: nn.Module
    digests: dict[str, str]

    def check(self, model: nn.Module | None = None) -> None:
        """Raise if a frozen tensor has changed in a single bit.

        The device and the layout in memory do not count, the type of the numbers does.

        Args:
            model: look at this module instead, such as a copy or one that was loaded from a file.

        Raises:
            KeyFiltersError: names every tensor that moved or is gone.

        >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
        >>> freeze_filters_(net).check()
        """
        seen = unwrapped(self.model if model is None else model)
        tensors: dict[str, Tensor] = dict(seen.named_parameters(remove_duplicate=False))
        tensors |= dict(seen.named_buffers(remove_duplicate=False))
        tensors = {clean_name(name): tensor for name, tensor in tensors.items()}
        moved = [
            name if name in tensors else f"{name} (gone)"
            for name, digest in self.digests.items()
            if name not in tensors or digest_of(tensors[name]) != digest
        ]
        if moved:
            raise KeyFiltersError(f"these were frozen, but moved: {', '.join(moved)}")


def freeze_filters_(
    model: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    batchnorm: str = "train",
    bias: bool = False,
) -> Frozen:
    """Freeze the depthwise filters of a model, in place (babaiee2025masterkey).

    The weights get ``requires_grad=False`` and lose their gradient, since an optimiser made before
    would still apply it, with its weight decay.

    Frozen filters do not freeze what the batch normalisation behind them learns, so say which:

    - ``"train"``: statistics and affine parameters go on learning.
    - ``"eval"``: the running statistics are used and kept, whatever ``model.train()`` says; the
      affine parameters go on learning. A forward pre-hook puts the module into evaluation mode
      before each of its passes; it is copied and pickled with the model, but lost where the module
      is replaced (`torch.nn.SyncBatchNorm.convert_sync_batchnorm`: convert first).
    - ``"frozen"``: as eval, and the affine parameters are frozen too.

    This concerns the batch normalisation that directly follows a frozen layer, in the forward pass
    of a copy on an example or, where none can be made, in the order of registration
    (`following_batchnorm`); all others train on. Freezing again replaces the policy.

    Args:
        model: a module; its optimiser may be given all parameters or the trainable ones.
        layers: names or patterns of those to freeze; None takes all.
        batchnorm: one of the above.
        bias: whether to freeze the biases of the convolutions too.

    Returns:
        A table of what was frozen, and ``check()``, which raises once anything of it has moved.

    Raises:
        KeyFiltersError: unknown policy, not a module, a parametrised weight among the layers, or
            statistics to keep where none are tracked. The model is then unchanged.
        NoFiltersError: the model has no depthwise layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    >>> frozen = freeze_filters_(net, batchnorm="eval")
    >>> frozen.table[["layer", "bias", "batchnorm", "policy"]].values.tolist()
    [['0', 'free', '1', 'eval']]
    >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    ['0.bias', '1.weight', '1.bias']
    """
    if batchnorm not in POLICIES:
        raise KeyFiltersError(f"batchnorm is {batchnorm!r}; type one of: {', '.join(POLICIES)}")
    _require_module(model)
    root = unwrapped(model)
    targets = _targets(root, layers)
    behind = traced_batchnorms(root)
    paths = {module: path for path, module in root.named_modules()}
    norms = {
        x.name: behind.get(x.module) or following_batchnorm(root, paths[x.module]) for x in targets
    }
    for name in filter(None, norms.values()):
        if batchnorm != "train" and root.get_submodule(name).running_mean is None:
            raise KeyFiltersError(f'{name} has no statistics to keep; type batchnorm="train"')
    digests: dict[str, str] = {}
    rows = []
    for kernel in targets:
        conv, norm_name = kernel.module, norms[kernel.name]
        _release_(conv, root.training)
        held = [*kernel.stored, "bias"] if bias else [*kernel.stored]
        _hold_(conv, held)
        watched = {join(kernel.name, x): _tensor(conv, x) for x in held}
        if norm_name:
            watched |= _keep_norm_(root, norm_name, batchnorm)
        own = {name: digest_of(x) for name, x in watched.items() if x is not None}
        digests |= own
        shape, policy = kernel.read().shape, batchnorm if norm_name else ""
        kept_bias = "none" if conv.bias is None else "frozen" if bias else "free"
        plain = own.get(join(kernel.name, "weight")) if kernel.plain else None
        short = (plain or digest_of(kernel.read()))[:12]
        size = f"{shape[2]}×{shape[3]}"
        row = (kernel.name, size, shape[0], kernel.depth, short, kept_bias, norm_name, policy)
        rows.append(row)
    return Frozen(pd.DataFrame(rows, columns=COLUMNS), model, digests)


def _targets(root: nn.Module, layers: Sequence[str] | None) -> list[Kernel]:
    """Return the layers to freeze.

    Raises:
        KeyFiltersError: one of them cannot be frozen.
        NoFiltersError: there is none.
    """
    found = [x for x in kernels(root) if x.depthwise or x.unwritable]
    if not found:
        raise NoFiltersError("the model has no depthwise convolution, so there is none to freeze")
    wanted = [layers] if isinstance(layers, str) else layers
    for pattern in wanted or ():
        if not any(fnmatchcase(x.name, pattern) for x in found):
            tail = nearest(pattern, [x.name for x in found])
            raise KeyFiltersError(f"no depthwise layer is called {pattern!r}{tail}")
    chosen = [x for x in found if wanted is None or any(fnmatchcase(x.name, p) for p in wanted)]
    for kernel in chosen:
        if kernel.form is None or isinstance(kernel.module, torch.jit.ScriptModule):
            why = kernel.unreadable or kernel.unwritable or "a scripted module is not frozen here"
            raise KeyFiltersError(f"{kernel.name} cannot be frozen: {why}")
        form = kernel.form
        if parametrize.is_parametrized(kernel.module, "weight") and form.fixed:
            raise KeyFiltersError(
                f"the weight of {kernel.name} is parametrised, so there is none to freeze; bake it "
                f"first: {form.undo}"
            )
        if form.moves or "quantised" in form.how:
            raise KeyFiltersError(
                f"{kernel.name} cannot be frozen: its kernel is {form.how}, which no frozen "
                f"parameter holds still; type {form.undo} first"
            )
        if not all(_reachable(kernel.module, name) for name in kernel.stored):
            raise KeyFiltersError(f"{kernel.name} belongs to a program; freeze the module itself")
    return [kernel for kernel in chosen if not kernel.owner]


def _keep_norm_(root: nn.Module, name: str, policy: str) -> dict[str, Tensor]:
    """Apply the policy to a normalisation; return the tensors that must not move."""
    norm = root.get_submodule(name)
    _release_(norm, root.training)
    if policy == "train":
        return {}
    norm.register_forward_pre_hook(_keep_statistics)
    norm.eval()
    affine = ["weight", "bias"] if policy == "frozen" else []
    _hold_(norm, affine)
    kept = ["running_mean", "running_var", *affine]
    return {f"{clean_name(name)}.{part}": getattr(norm, part) for part in kept}


def _reachable(conv: nn.Module, name: str) -> bool:
    try:
        return isinstance(_tensor(conv, name), Tensor)
    except AttributeError:
        return False


def _tensor(module: nn.Module, name: str) -> Any:
    """Return an attribute by a dotted name."""
    holder, _, last = name.rpartition(".")
    return getattr(module.get_submodule(holder), last)


def unfreeze_filters_(model: nn.Module) -> list[str]:
    """Give all that `freeze_filters_` froze the ``requires_grad`` that it had before.

    Args:
        model: the module that was frozen, a copy of it, or a part.

    Returns:
        The dotted names of the modules released, convolutions and batch normalisations.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    >>> frozen = freeze_filters_(net)
    >>> unfreeze_filters_(net), net[0].weight.requires_grad
    (['0'], True)
    """
    _require_module(model)
    return [name for name, module in model.named_modules() if _release_(module, model.training)]


def _keep_statistics(module: nn.Module, _: Any) -> None:
    """Forward pre-hook; at the module's top level so that it can be pickled."""
    module.eval()


def _hold_(module: nn.Module, names: Sequence[str]) -> None:
    held = {}
    for name in names:
        parameter = _tensor(module, name)
        if isinstance(parameter, nn.Parameter):
            held[name] = parameter.requires_grad
            parameter.requires_grad_(False)
            parameter.grad = None
    setattr(module, MARK, held)


def _release_(module: nn.Module, training: bool) -> bool:
    """Undo `_hold_` and the hook; say whether there was anything to undo."""
    # Not by the hook's handle: in a copy of the model that would remove the original's.
    for key in [k for k, hook in module._forward_pre_hooks.items() if hook is _keep_statistics]:
        del module._forward_pre_hooks[key]
        module.train(training)
    held = module.__dict__.pop(MARK, None)
    for name, trainable in (held or {}).items():
        _tensor(module, name).requires_grad_(trainable)
    return held is not None


def digest_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and bits, wherever it lies."""
    plain = tensor.detach().cpu().contiguous()
    seen = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return hashlib.sha256(seen + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _require_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise KeyFiltersError(f"expected the torch.nn.Module that trains, got {type(model)}")
