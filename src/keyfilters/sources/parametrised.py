"""Kernels that several tensors of a state dict make: normalised, pruned, or drawn from keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["made_kernels"]

Part = Mapping[str, Tensor]
INFIX = ".parametrizations.weight."


def made_kernels(tensors: Part) -> tuple[dict[str, Tensor | str], dict[str, str]]:
    """Find the kernels that several tensors make.

    Args:
        tensors: a state dict.

    Returns:
        By layer the kernel ``(C, 1, k_y, k_x)``, or why it is not known; and for the name of every
        tensor that takes part the layer that it belongs to.

    >>> weight = torch.ones(2, 1, 3, 3)
    >>> made, parts = made_kernels({"c.weight_orig": weight, "c.weight_mask": weight * 0})
    >>> made["c"].sum().item(), parts
    (0.0, {'c.weight_orig': 'c', 'c.weight_mask': 'c'})
    """
    made: dict[str, Tensor | str] = {}
    parts: dict[str, str] = {}
    for layer, (names, part) in _grouped(tensors).items():
        found = next((make(part) for has, make in WAYS if has <= part.keys()), None)
        if found is None and not any(x in names[0] for x in (INFIX, "weight_orig")):
            continue  # tensors whose names end so by chance
        known = "its kernel is made by a parametrisation that names do not tell; read the module"
        made[layer] = known if found is None else found
        parts |= dict.fromkeys(names, layer)
    return made, parts


def _grouped(tensors: Part) -> dict[str, tuple[list[str], dict[str, Tensor]]]:
    groups: dict[str, tuple[list[str], dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        padded = f".{name}"
        layer, infix, rest = padded.partition(INFIX)
        if not infix:
            layer, _, rest = padded.rpartition(".")
            if rest not in ("weight_g", "weight_v", "weight_orig", "weight_u", "weight_mask"):
                continue
        names, part = groups.setdefault(layer.lstrip("."), ([], {}))
        names.append(name)
        part[rest] = tensor
    return groups


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    axes = [axis for axis, size in enumerate(g.shape) if size == 1 and v.ndim == g.ndim]
    norm = torch.linalg.vector_norm(v, dim=axes or None, keepdim=bool(axes))
    return v * (g / norm)


def _spectral(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return weight / u.dot(weight.flatten(1) @ v)


def _on_fixed_keys(part: Part) -> Tensor:
    drawn = part["0.keys.filters"][:, 0].double()[part["0.keys.index"]]
    return _on_keys(part, drawn)


def _on_scaled_keys(part: Part) -> Tensor:
    """Draw the forms of `keyfilters.receptive_fields.scaled_keys.ScaledKeys` in float64."""
    index, impulse = part["0.keys.index"], part["0.keys.impulse"].double()
    size = impulse.shape[-1]
    radius = size // 2
    raw = part["0.keys.raw_sigma"].double().view(2, -1)
    raw = torch.where(part["0.keys.one_scale"][index], raw[0], raw)
    variance = functional.softplus(raw).clamp(max=5.0).square()  # (2, C)
    half = 20 + radius
    theta = torch.arange(half + 1, dtype=torch.float64) * (torch.pi / half)
    weights = torch.cos(theta[:, None] * torch.arange(radius + 1)) / half
    weights[[0, -1]] /= 2
    nodes = torch.exp((torch.cos(theta) - 1)[:, None] * variance.flatten())
    kernels = (weights.T @ nodes).view(radius + 1, 1, *variance.shape)  # T(n; σ²)
    factors = part["0.keys.axes"].double()[:, index].unflatten(0, (radius + 1, -1, 2))
    along = (factors * kernels).sum(0).unflatten(0, (-1, size))  # (terms, k, 2, C)
    drawn = (along[:, :, None, 1] * along[:, None, :, 0]).sum(0).permute(2, 0, 1)
    drawn = impulse[index, 0] + drawn
    drawn = drawn - drawn.mean((1, 2), keepdim=True)
    return _on_keys(part, drawn / drawn.square().sum((1, 2), keepdim=True).sqrt())


def _on_keys(part: Part, drawn: Tensor) -> Tensor:
    a, b = (part[f"0.{name}"].double()[:, None, None] for name in ("amplitude", "bias"))
    kernel = a * drawn + b
    if "0.unit" in part:
        kernel = kernel / kernel.square().sum((1, 2), keepdim=True).sqrt()
    return kernel.to(part["0.amplitude"].dtype)[:, None]


# Names that must be there, and what they make. The first that fits is taken.
WAYS: list[tuple[set[str], Callable[[Part], Tensor]]] = [
    ({"0.keys.raw_sigma", "0.keys.axes"}, _on_scaled_keys),
    ({"0.keys.filters", "0.keys.index"}, _on_fixed_keys),
    ({"original0", "original1"}, lambda p: _weight_norm(p["original0"], p["original1"])),
    ({"original", "0._u", "0._v"}, lambda p: _spectral(p["original"], p["0._u"], p["0._v"])),
    ({"weight_g", "weight_v"}, lambda p: _weight_norm(p["weight_g"], p["weight_v"])),
    (
        {"weight_orig", "weight_u", "weight_v"},
        lambda p: _spectral(p["weight_orig"], p["weight_u"], p["weight_v"]),
    ),
    ({"weight_orig", "weight_mask"}, lambda p: p["weight_orig"] * p["weight_mask"]),
]
