"""Keeping depthwise filters on the keys while a network trains, and making them plain again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keyfilters.depthwise import Kernel, depthwise_layers, kernels
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery.key_weights import FixedKeys, KeyWeight, ScaledKeys
from keyfilters.surgery.offers import one_key_set
from keyfilters.surgery.sites import Site, find_sites, refuse_programs

__all__ = ["LEARNABLE", "bake_filters_", "parametrize_filters_"]

LEARNABLE = ("amplitude", "bias", "sigma")
Assignment = Literal["trained", "random"]


def parametrize_filters_(
    model: nn.Module,
    keys: KeySet,
    learn: Sequence[str] = ("bias",),
    *,
    layers: Sequence[str] | None = None,
    unit_norm: bool = False,
    assignment: Assignment = "trained",
    seed: int = 0,
) -> pd.DataFrame:
    """Draw the depthwise filters of a model from keys, in place, so that training keeps them there.

    ``w_c = a_c x_index[c] + b_c`` (babaiee2025quest): the key of every channel is fixed, of a, b
    and the scales of the key those named in `learn` become parameters, the others buffers. Make the
    optimiser afterwards. A weight is drawn once a forward pass, in float32 or wider.

    Args:
        model: a module; layers of another size than the keys are left alone.
        keys: a key set ``(K, k, k)``.
        learn: any of ``"amplitude"`` (a, ``(C,)`` in units of the weight), ``"bias"`` (b, ``(C,)``
            a tap) and ``"sigma"`` (σx and σy, ``(C,)`` each in taps, softplus of the parameter, α
            fixed; needs idealised keys). Empty freezes the filters on the keys.
        layers: names or patterns of those to parametrise; None takes all that fit.
        unit_norm: whether to divide each kernel by its ℓ2 norm (lindeberg2026modelling).
        assignment: ``"trained"`` takes key, a and b nearest to the present filters; ``"random"``
            draws key and sign, with b = 0 and the root mean square of the layer.
        seed: of the random assignment.

    Returns:
        One row a depthwise layer: layer, size, filters, explained (share of the filters' variance
        over the taps that ``a x + b`` keeps, before `unit_norm`), parameters (numbers that are
        learned), and left: why a layer was left alone.

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
    keys = one_key_set(keys)
    learn = _checked(learn, keys, assignment)
    if not isinstance(model, nn.Module):
        raise KeyFiltersError(f"only a module can be parametrised, got {type(model).__name__}")
    size = (keys.size, keys.size)
    found = {kernel.name: kernel for kernel in kernels(model) if kernel.depthwise}
    sites, left = find_sites(model, layers)
    _refuse_computed(found.values(), layers, size)
    fitting = [site for site in sites if site.size == size]
    if not fitting:
        raise KeyFiltersError(_none_fits(sites, left, size))
    _refuse_frozen_or_tied(model, fitting, learn)
    generator = np.random.default_rng(seed)
    refuse_programs(fitting)
    made = [_make(site, keys, learn, unit_norm, assignment, generator) for site in fitting]
    for site, (weight, _) in zip(fitting, made, strict=True):
        assert site.conv is not None
        parametrize.register_parametrization(site.conv, "weight", weight)
    learned = {site.name: part for site, part in zip(fitting, made, strict=True)}
    rows = []
    for name, kernel in found.items():
        assert kernel.shape is not None
        row: dict[str, object] = {"layer": name, "size": _text(kernel.shape.kernel)}
        row["filters"] = kernel.shape.out_channels
        if name in learned:
            weight, explained = learned[name]
            count = sum(parameter.numel() for parameter in weight.parameters())
            rows.append(row | {"explained": explained, "parameters": count, "left": ""})
        else:
            reason = left.get(name, f"the keys are {_text(size)}")
            rows.append(row | {"explained": float("nan"), "parameters": 0, "left": reason})
    return pd.DataFrame(rows)


def bake_filters_(model: nn.Module) -> list[str]:
    """Turn the layers that `parametrize_filters_` made back into plain convolutions, in place.

    Each weight is what was drawn last, bit for bit, and is trainable again; the state dict has its
    original keys in their original order.

    Args:
        model: a module.

    Returns:
        The names of the layers.

    Raises:
        KeyFiltersError: no layer is parametrised.
    """
    baked = []
    for name, conv in depthwise_layers(model):
        if not _has_keys(conv):
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
        baked.append(name)
    if not baked:
        raise KeyFiltersError(f"no layer of this model is parametrised with keys; {_hint(model)}")
    return baked


def _hint(model: nn.Module) -> str:
    for kernel in kernels(model, order=False):
        if kernel.form is not None and kernel.form.how and kernel.form.undo:
            how, undo = kernel.form.how, kernel.form.undo
            return f"{kernel.name} is {how}: type {undo} to make it plain"
    return "type kf.parametrize_filters_(model, keys) first"


def _has_keys(conv: nn.Conv2d) -> bool:
    return parametrize.is_parametrized(conv, "weight") and any(
        isinstance(x, KeyWeight) for x in conv.get_submodule("parametrizations.weight").children()
    )


def _checked(learn: Sequence[str], keys: KeySet, assignment: str) -> tuple[str, ...]:
    learn = (learn,) if isinstance(learn, str) else tuple(learn)
    unknown = [name for name in learn if name not in LEARNABLE]
    if unknown:
        raise KeyFiltersError(f"{unknown[0]!r} cannot be learned; known are {', '.join(LEARNABLE)}")
    if "sigma" in learn and keys.models is None:
        raise KeyFiltersError(
            "only idealised keys have scales to learn, and these have no models; type for example "
            f"KeySet.published('lindeberg2026-B', size={keys.size})"
        )
    if assignment not in get_args(Assignment):
        raise KeyFiltersError(f"assignment must be 'trained' or 'random', got {assignment!r}")
    return learn


def _refuse_computed(
    found: Iterable[Kernel], layers: Sequence[str] | None, size: tuple[int, ...]
) -> None:
    """Refuse layers of the keys' size whose weight is computed from others already."""
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else layers
    for kernel in found:
        asked = any(fnmatchcase(kernel.name, pattern) for pattern in patterns)
        if not asked or kernel.shape is None or kernel.shape.kernel != size or kernel.plain:
            continue
        if kernel.form is None:
            if layers is None:
                continue  # the report says why it is left alone
            raise KeyFiltersError(f"layer {kernel.name} cannot be put on keys: {kernel.unreadable}")
        mend = f"; type {kernel.form.undo} first" if kernel.form.undo else ""
        if parametrize.is_parametrized(kernel.module, "weight"):
            raise KeyFiltersError(f"layer {kernel.name} is parametrised already{mend}")
        raise KeyFiltersError(
            f"layer {kernel.name} cannot be put on keys: its kernel is {kernel.form.how}{mend}"
        )


def _none_fits(sites: Sequence[Site], left: dict[str, str], size: tuple[int, ...]) -> str:
    if not sites:
        return f"nothing could be parametrised: {'; '.join(sorted(set(left.values())))}"
    sizes = sorted({site.size for site in sites})
    odd = next((k for k, other in sizes if k == other and k % 2 and k > 1), None)
    hint = f"; type for example KeySet.published('lindeberg2026-B', size={odd})" if odd else ""
    found = ", ".join(_text(each) for each in sizes)
    return f"the keys are {_text(size)}, but the model's filters are {found}{hint}"


def _refuse_frozen_or_tied(model: nn.Module, sites: Sequence[Site], learn: Sequence[str]) -> None:
    owners = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for site in sites:
        if learn and not site.weight.requires_grad:
            raise KeyFiltersError(
                f"layer {site.name} is frozen, but {', '.join(learn)} would be learned; type "
                "learn=() to keep it frozen, or requires_grad_(True) on its weight"
            )
        if owners[id(site.weight)] > 1:
            raise KeyFiltersError(
                f"layer {site.name} shares its weight with another module, which would be untied"
            )


def _make(
    site: Site,
    keys: KeySet,
    learn: Sequence[str],
    unit_norm: bool,
    assignment: str,
    generator: np.random.Generator,
) -> tuple[KeyWeight, float]:
    """Return the parametrisation of one layer and the share of variance that it keeps."""
    filters = site.filters
    if not np.isfinite(filters).all():
        raise KeyFiltersError(f"layer {site.name} holds filters that are not finite")
    if assignment == "random":
        index, a = _at_random(filters, len(keys), generator)
        b = np.zeros(len(filters))
    else:
        index, a, b = (np.asarray(found) for found in keys.assign(filters)[:3])
    explained = _explained(filters, a[:, None, None] * keys.filters[index])
    values: dict[str, Tensor] = {}
    for name, value in (("amplitude", a), ("bias", b)):
        tensor = torch.tensor(value).to(site.weight)
        if not torch.isfinite(tensor).all():
            raise KeyFiltersError(
                f"{site.weight.dtype} cannot hold the {name} of layer {site.name}; type "
                "model.float() first"
            )
        values[name] = nn.Parameter(tensor) if name in learn else tensor
    drawn: FixedKeys | ScaledKeys = FixedKeys(keys.filters, index)
    if "sigma" in learn:
        drawn = ScaledKeys(keys.models, keys.filters, index)
    weight = KeyWeight(drawn, values["amplitude"], values["bias"], unit_norm=unit_norm)
    weight.to(site.weight.device, site.weight.dtype)
    if site.weight.stride(1) == 1:
        weight.to(memory_format=torch.channels_last)
    return weight, explained


def _at_random(
    filters: NDArray[np.float64], count: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    index = generator.integers(count, size=len(filters))
    sign = generator.choice([-1.0, 1.0], size=len(filters))
    return index, sign * np.sqrt((filters**2).sum((1, 2)).mean())


def _explained(filters: NDArray[np.float64], drawn: NDArray[np.float64]) -> float:
    centred = filters - filters.mean((1, 2), keepdims=True)
    power = float((centred**2).sum())
    return 1 - float(((centred - drawn) ** 2).sum()) / power if power else float("nan")


def _text(size: tuple[int, ...]) -> str:
    return f"{size[0]}×{size[1]}"
