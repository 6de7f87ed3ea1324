"""Freezing depthwise filters, with a policy for the batch normalisation behind them and a proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx, nn

from keyfilters.depthwise import Kernel
from keyfilters.errors import KeyFiltersError
from keyfilters.passes import clean_name, unwrapped
from keyfilters.surgery.targets import all_targets, choose_targets, layer_table
from keyfilters.threads import one_thread_if_forked
from keyfilters.tracing import batchnorms_behind

__all__ = ["POLICIES", "Frozen", "digest_of", "freeze_filters_", "unfreeze_filters_"]

POLICIES = ("train", "eval", "frozen")
COLUMNS = ["sha256", "bias", "batchnorm", "policy"]
MARK = "_keyfilters_frozen"  # on every module touched: parameter -> whether it was trainable
KEPT = "_keyfilters_kept"  # on the model: names of the normalisations that keep their statistics


@dataclass(frozen=True, eq=False)
class Frozen:
    """What was frozen, and the means to show that it has not moved.

    Attributes:
        table: one row a layer: layer, size, depth, filters, sha256 (of the weight, 12 digits), bias
            (frozen, free or none), batchnorm (that which directly follows, or empty), policy, and
            left: why a layer was left alone.
        model: the module that was frozen.
        digests: SHA-256 of every frozen tensor, by its dotted name: weights, and where they are
            frozen biases, running statistics and affine parameters.
    """

    table: pd.DataFrame
    model: nn.Module
    digests: dict[str, str]

    def check(self, model: nn.Module | None = None) -> None:
        """Raise if a frozen tensor has changed in a single bit.

        The device and the layout in memory do not count, the dtype does.

        Args:
            model: look at this module instead, such as a copy or one that was loaded from a file.

        Raises:
            KeyFiltersError: names every tensor that moved or is gone.

        >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
        >>> freeze_filters_(net).check()
        """
        seen = unwrapped(self.model if model is None else model)
        _adopt_(seen, None)
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


@one_thread_if_forked()
def freeze_filters_(
    model: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    batchnorm: str = "train",
    bias: bool = False,
) -> Frozen:
    """Freeze the depthwise filters of a model, in place (babaiee2025masterkey).

    The weights get ``requires_grad=False`` and lose their gradient, since an optimiser made before
    would still apply it, with its weight decay. The batch normalisation that directly follows, in
    a forward pass or else in the order of registration, is treated by a policy; all others train
    on. Freezing again replaces the policy.

    - ``"train"``: statistics and affine parameters go on learning.
    - ``"eval"``: the running statistics are used and kept, whatever ``model.train()`` says; the
      affine parameters go on learning. Forward pre-hooks of the normalisation and of the model put
      it into evaluation mode before each pass. They are copied and pickled with the model, and that
      of the model also holds what replaces the normalisation
      (`torch.nn.SyncBatchNorm.convert_sync_batchnorm`).
    - ``"frozen"``: as eval, and the affine parameters are frozen too.

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
    targets, left = choose_targets(all_targets(root, to_write=False), layers)
    for target in targets:
        if why := _why_not_frozen(target):
            raise KeyFiltersError(f"{target.name} cannot be frozen: {why}")
    norms = batchnorms_behind(root, [x.module for x in targets if x.module is not None])
    for name in filter(None, norms.values()):
        if batchnorm != "train" and root.get_submodule(name).running_mean is None:
            raise KeyFiltersError(f'{name} has no statistics to keep; type batchnorm="train"')
    digests: dict[str, str] = {}
    rows = {}
    for target in targets:
        assert target.module is not None
        conv, norm = target.module, norms[target.module]
        _release_(conv, root.training)
        digests |= _hold_(conv, target.name, [*target.stored, *(["bias"] * bias)])
        if norm:
            digests |= _hold_norm_(root, norm, batchnorm)
        has_bias = getattr(conv, "bias", None) is not None
        rows[target.name] = {
            "sha256": digest_of(target.read())[:12],
            "bias": "none" if not has_bias else "frozen" if bias else "free",
            "batchnorm": norm,
            "policy": batchnorm if norm else "",
        }
    return Frozen(layer_table(targets, left, rows, COLUMNS), model, digests)


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
    for module in model.modules():
        _adopt_(module, None)
        _drop_hooks_(module, _adopt_)
        vars(module).pop(KEPT, None)
    return [name for name, module in model.named_modules() if _release_(module, model.training)]


def _why_not_frozen(kernel: Kernel) -> str:
    form, module = kernel.form, kernel.module
    if form is None:
        return kernel.unreadable or kernel.unwritable
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return "it belongs to a program (a scripted module or exported); freeze the module itself"
    if form.fixed and getattr(form, "on_keys", False):
        return f"it is parametrised, so there is no weight to freeze; bake it first: {form.undo}"
    if form.moves or "quantised" in form.how:
        return f"its kernel is {form.how}, which no frozen parameter holds still; type {form.undo}"
    return ""


def _hold_norm_(root: nn.Module, name: str, policy: str) -> dict[str, str]:
    """Apply the policy to a normalisation; return the digests of its frozen tensors."""
    norm = root.get_submodule(name)
    _release_(norm, root.training)
    kept = {key: held for key, held in vars(root).get(KEPT, {}).items() if key != name}
    digests = {}
    if policy != "train":
        norm.register_forward_pre_hook(_keep_statistics)
        norm.eval()
        parts = ["running_mean", "running_var", *(["weight", "bias"] * (policy == "frozen"))]
        digests = _hold_(norm, clean_name(name), parts)
        kept[name] = getattr(norm, MARK)
    _drop_hooks_(root, _adopt_)
    setattr(root, KEPT, kept)
    if kept:
        root.register_forward_pre_hook(_adopt_)
    return digests


def _keep_statistics(module: nn.Module, _: Any) -> None:
    """Forward pre-hook; at the top level of this file so that it can be pickled."""
    module.eval()


def _adopt_(root: nn.Module, _: Any) -> None:
    """Forward pre-hook: freeze what has replaced a frozen normalisation, such as SyncBatchNorm."""
    for name, held in vars(root).get(KEPT, {}).items():
        norm = root.get_submodule(name)
        if MARK not in vars(norm):
            setattr(norm, MARK, held)
            norm.register_forward_pre_hook(_keep_statistics)


def _drop_hooks_(module: nn.Module, hook: Any) -> bool:
    # Not by the hook's handle: in a copy of the model that would remove the original's.
    keys = [key for key, known in module._forward_pre_hooks.items() if known is hook]
    for key in keys:
        del module._forward_pre_hooks[key]
    return bool(keys)


def _hold_(module: nn.Module, prefix: str, names: Sequence[str]) -> dict[str, str]:
    held, digests = {}, {}
    for name in names:
        tensor = attrgetter(name)(module)
        if isinstance(tensor, nn.Parameter):
            held[name] = tensor.requires_grad
            tensor.requires_grad_(False)
            tensor.grad = None
        if tensor is not None:
            digests[f"{prefix}.{name}" if prefix else name] = digest_of(tensor)
    setattr(module, MARK, held)
    return digests


def _release_(module: nn.Module, training: bool) -> bool:
    """Undo `_hold_` and the hook; tell whether there was anything to undo."""
    if _drop_hooks_(module, _keep_statistics):
        module.train(training)
    held = vars(module).get(MARK)
    if held is None:
        return False
    for name, trainable in held.items():
        with suppress(AttributeError):  # it has been removed since, as by remove_weight_norm
            attrgetter(name)(module).requires_grad_(trainable)
    setattr(module, MARK, None)  # not deleted, so that `_adopt_` does not freeze it again
    return True


def digest_of(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and bits, wherever it lies."""
    plain = tensor.detach().cpu().contiguous()
    seen = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return hashlib.sha256(seen + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _require_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise KeyFiltersError(f"expected the torch.nn.Module that trains, got {type(model)}")
