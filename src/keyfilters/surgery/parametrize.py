"""Keeping depthwise filters on the keys while a network trains, and making them plain again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keyfilters.depthwise import extent, kernels
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields.scaled_keys import ScaledKeys
from keyfilters.surgery.key_choice import choose_keys, explained_share, sets_by_size
from keyfilters.surgery.key_weights import FixedKeys, KeyWeight
from keyfilters.surgery.targets import (
    Target,
    find_targets,
    is_named,
    layer_table,
    refuse_programs,
)
from keyfilters.threads import one_thread_if_forked

__all__ = ["LEARNABLE", "bake_filters_", "learns_scales", "parametrize_filters_"]

LEARNABLE = ("amplitude", "bias", "sigma")
Assignment = Literal["trained", "random"]


@one_thread_if_forked()
def parametrize_filters_(
    model: nn.Module,
    keys: KeySet | Sequence[KeySet],
    learn: Sequence[str] = ("bias",),
    *,
    layers: Sequence[str] | None = None,
    unit_norm: bool = False,
    assignment: Assignment = "trained",
    seed: int = 0,
) -> pd.DataFrame:
    """Make the depthwise filters of a model a · key + b, in place; training keeps them so.

    ``w_c = a_c x_index[c] + b_c`` (babaiee2025quest): the key of every channel is fixed. Of
    a, b and the scales of the key, those named in `learn` become parameters, the others buffers.
    Make the optimiser afterwards. A weight is computed once a forward pass, in float32 or wider.

    Args:
        model: a module; layers of another size than the keys are left alone.
        keys: a key set ``(K, k_y, k_x)``, or several of different sizes.
        learn: any of ``"amplitude"`` (a, ``(C,)`` in units of the weight), ``"bias"`` (b, ``(C,)``
            a tap) and ``"sigma"`` (σx and σy, ``(C,)`` each in taps, softplus of the parameter, α
            fixed; needs idealised keys). Empty freezes the filters on the keys.
        layers: names or patterns of those to parametrise; None takes all that fit.
        unit_norm: whether to divide each kernel by its ℓ2 norm (lindeberg2026modelling).
        assignment: ``"trained"`` takes key, a and b nearest to the present filters; ``"random"``
            draws key and sign, with b = 0 and the root mean square of the layer.
        seed: of the random assignment.

    Returns:
        One row a depthwise layer: layer, size, depth, filters, explained (share of the filters'
        variance over the taps that ``a x + b`` keeps, before `unit_norm`), parameters (numbers that
        are learned), and left: why a layer was left alone.

    Raises:
        KeyFiltersError: unknown names in `learn`, no idealised keys for ``"sigma"``, no layer of
            the keys' size, or a layer that is parametrised already, frozen though something is to
            be learned, or tied to another. The model is then unchanged.
        NoFiltersError: the model has no depthwise layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    >>> report = parametrize_filters_(net, KeySet.published("lindeberg2026-B"))
    >>> report[["layer", "size", "filters", "parameters"]].values.tolist()
    [['0', '7×7', 8, 8]]
    >>> [name for name, _ in net.named_parameters()]
    ['0.bias', '0.parametrizations.weight.0.bias']
    >>> bake_filters_(net), list(net.state_dict())
    (['0'], ['0.weight', '0.bias'])
    """
    by_size = sets_by_size(keys)
    learn = _checked(learn, by_size.values(), assignment)
    if not isinstance(model, nn.Module):
        raise KeyFiltersError(f"only a module can be parametrised, got {type(model).__name__}")
    targets, left = find_targets(model, layers)
    tied = Counter(id(x) for module in model.modules() for x in module._parameters.values())
    for target in [*targets, *left]:
        if (
            target.shape is not None
            and target.size in by_size
            and is_named(target.name, layers)
            and (why := _why_not(target, learn, layers, tied))
        ):
            raise KeyFiltersError(f"layer {target.name} {why}")
    choose_keys(targets, keys, left, "nothing could be parametrised")
    fitting = [target for target in targets if target.size in by_size]
    refuse_programs(fitting)
    generators = {size: np.random.default_rng(seed) for size in by_size}
    made = [
        _make(x, by_size[x.size], learn, unit_norm, assignment, generators[x.size]) for x in fitting
    ]
    rows = {target.name: {"explained": np.nan, "parameters": 0} for target in left}
    for target, (weight, explained) in zip(fitting, made, strict=True):
        assert target.conv is not None
        count = sum(parameter.numel() for parameter in weight.parameters())
        rows[target.name] = {"explained": explained, "parameters": count}
        parametrize.register_parametrization(target.conv, "weight", weight)
    return layer_table(fitting, left, rows, ["explained", "parameters"])


def learns_scales(size: tuple[int, int]) -> bool:
    """Whether scales can be learned in a window ``(k_y, k_x)``: a square one of odd side.

    >>> learns_scales((7, 7)), learns_scales((4, 4)), learns_scales((1, 7))
    (True, False, False)
    """
    return size[0] == size[1] and size[0] % 2 == 1


@one_thread_if_forked()
def bake_filters_(model: nn.Module) -> list[str]:
    """Turn the layers that `parametrize_filters_` made back into plain convolutions, in place.

    Each weight is what was computed last, bit for bit, and is trainable again; the state dict has
    its original keys in their original order.

    Args:
        model: a module.

    Returns:
        The names of the layers.

    Raises:
        KeyFiltersError: no layer is parametrised.
    """
    baked, found = [], kernels(model, order=False)
    for kernel in found:
        conv = kernel.module
        if not isinstance(conv, (nn.Conv1d, nn.Conv2d)) or not getattr(
            kernel.form, "on_keys", False
        ):
            continue
        # Copies share the class of their original, and torch takes the property out of it.
        shared = type(conv)
        conv.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        with torch.no_grad():
            parametrize.remove_parametrizations(conv, "weight")
        weight = conv.weight.detach().clone()
        del conv.weight
        others = dict(conv._parameters)
        conv._parameters.clear()
        conv.weight = nn.Parameter(weight)  # first, as it was
        conv._parameters.update(others)
        baked.append(kernel.name)
    if not baked:
        hint = "type kf.parametrize_filters_(model, keys) first"
        for kernel in found:
            if kernel.form is not None and kernel.form.how and kernel.form.undo:
                how, undo = kernel.form.how, kernel.form.undo
                hint = f"{kernel.name} is {how}: type {undo} to make it plain"
        raise KeyFiltersError(f"no layer of this model is parametrised with keys; {hint}")
    return baked


def _checked(learn: Sequence[str], sets: Iterable[KeySet], assignment: str) -> tuple[str, ...]:
    learn = (learn,) if isinstance(learn, str) else tuple(learn)
    unknown = [name for name in learn if name not in LEARNABLE]
    if unknown:
        raise KeyFiltersError(f"{unknown[0]!r} cannot be learned; known are {', '.join(LEARNABLE)}")
    for keys in sets if "sigma" in learn else ():
        if keys.models is None:
            raise KeyFiltersError(
                "only idealised keys have scales to learn, and these have no models; type for "
                f"example KeySet.published('lindeberg2026-B', size={keys.size})"
            )
        if not learns_scales(keys.window):
            raise KeyFiltersError(
                f"the scales of keys are learned in square windows of odd side, these are "
                f"{extent(keys.window)}; type learn=('amplitude', 'bias')"
            )
    if assignment not in get_args(Assignment):
        raise KeyFiltersError(f"assignment must be 'trained' or 'random', got {assignment!r}")
    return learn


def _why_not(
    target: Target, learn: Sequence[str], layers: Sequence[str] | None, tied: Counter[int]
) -> str:
    """Return why a layer of the keys' size must not be put on keys; empty if it may."""
    if target.form is None:  # without names the report says why it is left alone
        return "" if layers is None else f"cannot be put on keys: {target.unreadable}"
    if not target.plain:
        hint = f"; type {target.form.undo} first" if target.form.undo else ""
        if target.module is not None and parametrize.is_parametrized(target.module, "weight"):
            return f"is parametrised already{hint}"
        return f"cannot be put on keys: its kernel is {target.form.how}{hint}"
    if target.left:
        return ""
    if learn and not target.weight.requires_grad:
        return (
            f"is frozen, but {', '.join(learn)} would be learned; type learn=() to keep it frozen, "
            "or requires_grad_(True) on its weight"
        )
    if tied[id(target.weight)] > 1:
        return "shares its weight with another module, which would be untied"
    return ""


def _make(
    target: Target,
    keys: KeySet,
    learn: Sequence[str],
    unit_norm: bool,
    assignment: str,
    generator: np.random.Generator,
) -> tuple[KeyWeight, float]:
    """Return the parametrisation of one layer and the share of variance that it keeps."""
    filters = target.finite_filters()
    if assignment == "random":
        index = generator.integers(len(keys), size=len(filters))
        a: NDArray[Any] = generator.choice([-1.0, 1.0], size=len(filters))
        a *= np.sqrt((filters**2).sum((1, 2)).mean())
        b: NDArray[Any] = np.zeros(len(filters))
    else:
        index, a, b, _ = keys.assign(filters)
    values: dict[str, Tensor] = {}
    for name, value in (("amplitude", a), ("bias", b)):
        tensor = torch.tensor(value).to(target.weight)
        if not torch.isfinite(tensor).all():
            raise KeyFiltersError(
                f"{target.weight.dtype} cannot hold the {name} of layer {target.name}; type "
                "model.float() first"
            )
        values[name] = nn.Parameter(tensor) if name in learn else tensor
    drawn: FixedKeys | ScaledKeys = FixedKeys(keys.filters, index)
    if "sigma" in learn:
        drawn = ScaledKeys(keys.models, keys.filters, index)
    weight = KeyWeight(drawn, values["amplitude"], values["bias"], unit_norm, ndim=target.ndim)
    weight.to(target.weight.device, target.weight.dtype)
    if target.weight.ndim == 4 and target.weight.stride(1) == 1:
        weight.to(memory_format=torch.channels_last)
    return weight, explained_share(filters, keys.reconstruct(index, a, b))
