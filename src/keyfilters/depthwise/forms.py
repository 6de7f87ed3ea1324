"""How the stored tensors of a convolution make the kernel that it convolves with.

One class a way of storing it. `form_of` tells which one a convolution has.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from keyfilters.depthwise.probing import hands_over_its_weight, probe
from keyfilters.depthwise.shapes import QUANTISED, why_not_held
from keyfilters.errors import KeyFiltersError
from keyfilters.passes import evaluating, first_line, quiet

__all__ = ["Form", "form_of", "why_not_writable"]

Tensors = dict[str, Tensor]


class Form:
    """A plain kernel: the one stored tensor is what is convolved with.

    Attributes:
        how: how the stored tensors make the kernel, in words; empty for a plain kernel.
        undo: what to type to make the kernel plain.
        moves: whether training changes the kernel though all its parameters are frozen.
        fixed: why no other kernel can be written; empty where one can.
    """

    how = ""
    undo = ""
    moves = False
    fixed = ""

    def __init__(self, conv: nn.Module) -> None:
        self.conv = conv

    def stored(self) -> Tensors:
        """Return the stored tensors by their name inside the convolution."""
        return {"weight": self.conv.weight}  # type: ignore[dict-item]

    def read(self) -> Tensor:
        """Return the kernel in evaluation mode, in the stored shape; nothing is changed."""
        return self.decode(self.stored())

    def decode(self, stored: Tensors) -> Tensor:
        """Return the kernel that stored tensors make."""
        return stored["weight"].detach()

    def encode(self, kernel: Tensor) -> Tensors:
        """Return stored tensors that make a kernel as nearly as they can."""
        return {"weight": kernel}

    def refresh(self) -> None:
        """Bring up to date what the convolution keeps of the kernel."""

    def plan(self, kernel: Tensor) -> Tensors:
        """Return what to store so that this kernel is used, up to rounding, or raise."""
        stored = self.stored()
        dtype = next(iter(stored.values())).dtype
        new = {
            name: value.detach().to(stored[name].device, stored[name].dtype)
            for name, value in self.encode(kernel).items()
        }
        for value in new.values():
            if not torch.isfinite(value.float()).all():
                raise KeyFiltersError(
                    f"{dtype} cannot hold the new filters: its largest number is "
                    f"{torch.finfo(dtype).max:g}"
                )
        if self.how:
            made = self.decode({**stored, **new}).double().cpu()
            wide = kernel.double().cpu()
            allowed = 64 * torch.finfo(dtype).eps * float(wide.abs().max())
            if not bool(((made - wide).abs() <= allowed).all()):
                raise KeyFiltersError(f"its kernel is {self.how}, which cannot make these filters")
        return new


class Parametrised(Form):
    """`torch.nn.utils.parametrize`: drawn anew at every access."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__(conv)
        self.drawing: nn.Module = conv.get_submodule("parametrizations.weight")
        parts = list(self.drawing.children())
        kinds = [type(x).__name__ for x in parts]
        self.on_keys = any(getattr(x, "draws_keys", False) for x in parts)
        self.moves = "_SpectralNorm" in kinds
        self.how = f"parametrised by {', '.join(kinds)}"
        self.undo = 'torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")'
        if self.on_keys:
            self.how, self.undo = "parametrised with keys", "kf.bake_filters_(model)"
            self.fixed = "its weight is parametrised; bake it first: kf.bake_filters_(model)"

    def stored(self) -> Tensors:
        return self._tensors(self.drawing)

    def read(self) -> Tensor:
        with evaluating(self.drawing), quiet():
            kernel: Tensor = self.drawing()
        return kernel.detach()

    def encode(self, kernel: Tensor) -> Tensors:
        twin = copy.deepcopy(self.drawing).eval()
        like = next(iter(self.stored().values()))
        try:
            with quiet():
                cast(Any, twin).right_inverse(kernel.to(like.device, like.dtype))
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            raise KeyFiltersError(
                f"its kernel is {self.how}, which cannot make these filters ({first_line(error)})"
            ) from error
        return self._tensors(twin)

    def decode(self, stored: Tensors) -> Tensor:
        twin = copy.deepcopy(self.drawing).eval()
        with quiet():
            for name, tensor in self._tensors(twin).items():
                tensor.copy_(stored[name])
            kernel: Tensor = twin()
        return kernel.detach()

    def _tensors(self, drawing: nn.Module) -> Tensors:
        tensors = dict(drawing.named_parameters()) | dict(drawing.named_buffers())
        return {f"parametrizations.weight.{name}": x for name, x in tensors.items()}


class Hooked(Form):
    """Hooks that compute ``conv.weight`` before every pass."""

    names: tuple[str, ...] = ()

    def __init__(self, conv: nn.Module, hook: Any) -> None:
        super().__init__(conv)
        self.hook = hook

    def stored(self) -> Tensors:
        return {name: getattr(self.conv, name) for name in self.names}

    def decode(self, stored: Tensors) -> Tensor:
        return self.made(*(stored[name].detach() for name in self.names))

    def made(self, *stored: Tensor) -> Tensor:
        """Return the kernel that the tensors of `names` make."""
        raise NotImplementedError

    def refresh(self) -> None:
        self.conv.weight = self.read()


class WeightNorm(Hooked):
    """`torch.nn.utils.weight_norm`: ``g v / ‖v‖``."""

    how = "normalised by weight_norm"
    undo = "torch.nn.utils.remove_weight_norm(conv)"
    names = ("weight_g", "weight_v")

    def made(self, *stored: Tensor) -> Tensor:
        g, v = stored
        return torch._weight_norm(v, g, self.hook.dim)

    def encode(self, kernel: Tensor) -> Tensors:
        shape = self.stored()["weight_g"].shape
        norm = torch.norm_except_dim(kernel, 2, self.hook.dim).reshape(shape)
        return {"weight_g": norm, "weight_v": kernel}


class SpectralNorm(Hooked):
    """`torch.nn.utils.spectral_norm`: ``W / σ(W)``, with σ from power iteration in training."""

    how = "divided by its spectral norm"
    undo = "torch.nn.utils.remove_spectral_norm(conv)"
    moves = True
    names = ("weight_orig", "weight_u", "weight_v")
    fixed = f"its kernel is {how}, so its scale is not free; type {undo} first"

    def made(self, *stored: Tensor) -> Tensor:
        weight, u, v = stored
        return weight / u.dot(self.hook.reshape_weight_to_matrix(weight) @ v)


class Pruned(Hooked):
    """`torch.nn.utils.prune`: ``W · mask``."""

    how = "pruned by a mask"
    undo = 'torch.nn.utils.prune.remove(conv, "weight")'
    names = ("weight_orig", "weight_mask")

    def made(self, *stored: Tensor) -> Tensor:
        weight, mask = stored
        return weight * mask

    def encode(self, kernel: Tensor) -> Tensors:
        return {"weight_orig": kernel}


class Derived(Form):
    """A class of its own that computes the kernel from its parameters in its forward pass."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__(conv)
        self.how = f"computed by its class {type(conv).__name__}"

    def stored(self) -> Tensors:
        own = {**self.conv._parameters, **self.conv._buffers}
        return {k: x for k, x in own.items() if x is not None and k != "bias"}

    def decode(self, stored: Tensors) -> Tensor:
        return probe(self.conv, stored)

    def encode(self, kernel: Tensor) -> Tensors:
        gain, eps = self.conv._parameters.get("gain"), getattr(self.conv, "eps", None)
        if gain is None or not isinstance(eps, float):
            return {"weight": kernel}
        # timm's ScaledStdConv2d: gain · scale · (w − mean) / √(var + eps)
        flat = kernel.double().flatten(1)
        std = (flat.var(1, correction=0)).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        unit = (flat - flat.mean(1, keepdim=True)) / std[:, None]
        scale = float(getattr(self.conv, "scale", 1.0))
        new_gain = std * (1 + eps) ** 0.5 / scale
        return {"weight": unit.reshape(kernel.shape), "gain": new_gain.reshape(gain.shape)}


class Quantised(Form):
    """An eager-mode quantised convolution: integers with scales, packed."""

    how = "quantised"
    undo = "a model before quantisation"
    fixed = QUANTISED

    def stored(self) -> Tensors:
        return {"weight": self.conv.weight()}  # type: ignore[operator]

    def decode(self, stored: Tensors) -> Tensor:
        return stored["weight"].dequantize()


class Held(Form):
    """A plain tensor that a program, a state dict or a file holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def stored(self) -> Tensors:
        return {"weight": self.tensor}


def form_of(conv: nn.Module) -> Form:
    """Tell how a `torch.nn` convolution stores its kernel.

    Raises:
        KeyFiltersError: its class convolves in a way that cannot be followed.
    """
    if parametrize.is_parametrized(conv, "weight"):
        return Parametrised(conv)
    forms = {"WeightNorm": WeightNorm, "SpectralNorm": SpectralNorm}
    for hook in conv._forward_pre_hooks.values():
        kind, name = type(hook), getattr(hook, "name", getattr(hook, "_tensor_name", ""))
        if name == "weight" and kind.__module__.startswith("torch.nn.utils"):
            return forms.get(kind.__name__, Pruned)(conv, hook)
    weight = conv._parameters.get("weight", conv._buffers.get("weight"))
    if weight is None:
        raise KeyFiltersError("its weight is no parameter: something computes it before each pass")
    own = type(conv)
    for plain in (nn.Conv1d, nn.Conv2d):
        if own.forward is plain.forward and own._conv_forward is plain._conv_forward:  # type: ignore[attr-defined]
            return Form(conv)
    if weight.is_meta:
        return Form(conv)
    return Form(conv) if hands_over_its_weight(conv) else Derived(conv)


def why_not_writable(form: Form) -> str:
    """Return why no kernel can be written to a convolution; empty where one can."""
    return form.fixed or next(filter(None, map(why_not_held, form.stored().values())), "")
