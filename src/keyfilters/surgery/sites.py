"""Where a model keeps its depthwise filters, to be read and written in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.depthwise import Kernel, kernels, why_not_held
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.sources.statedicts import FIRST, read_state_dict, unwrap

SEVERAL_TENSORS = "its kernel is made of several tensors; replace it in the module"

__all__ = [
    "NOT_ASKED",
    "SEVERAL_TENSORS",
    "Model",
    "Site",
    "choose_sites",
    "find_sites",
    "refuse_programs",
]

Model = nn.Module | Mapping[str, Any]
NOT_ASKED = "not among the layers asked for"


@dataclass(frozen=True, eq=False)
class Site:
    """One depthwise layer of a model that can be written to.

    Attributes:
        name: of the layer, as `keyfilters.read` spells it.
        weight: ``(C, 1, k_y, k_x)``, the very tensor that the model holds; where several tensors
            make the kernel, what they make.
        depth: relative depth in [0, 1] among the model's depthwise layers.
        conv: the convolution; None in a state dict or a program.
        kernel: what its weight is and how it is written; None in a state dict or a file.
    """

    name: str
    weight: Tensor
    depth: float
    conv: nn.Conv2d | None = None
    kernel: Kernel | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Kernel size ``(k_y, k_x)``."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def extent(self) -> str:
        """The kernel size in words, such as ``"7×7"``."""
        return f"{self.size[0]}×{self.size[1]}"

    @property
    def filters(self) -> NDArray[np.float64]:
        """A copy of the filters that are convolved with, ``(C, k_y, k_x)``."""
        weight = self.weight if self.kernel is None else self.kernel.read()
        return weight.detach().cpu().double().numpy()[:, 0].copy()

    def prepare(self, filters: NDArray[Any] | Tensor) -> Callable[[], None]:
        """Check that filters can be written here, and return what writes them.

        Args:
            filters: ``(C, k_y, k_x)``; rounded to the weight's own dtype.

        Raises:
            KeyFiltersError: another shape, a number that is not finite or becomes so when it is
                rounded, or filters that the layer cannot hold. The model is unchanged.
        """
        new = torch.as_tensor(filters)
        if new.shape != self.weight.shape[:1] + self.weight.shape[2:]:
            expected = tuple(self.weight.shape[:1] + self.weight.shape[2:])
            raise KeyFiltersError(
                f"{self.name} holds filters of shape {expected}, got {tuple(new.shape)}"
            )
        if not torch.isfinite(new).all():
            raise KeyFiltersError(f"refused to write filters that are not finite to {self.name}")
        if self.kernel is not None:
            kernel, planned = self.kernel, self.kernel.plan(new[:, None])
            return lambda: kernel.write_(planned)
        weight, rounded = self.weight, new[:, None].to(self.weight.device, self.weight.dtype)
        if not torch.isfinite(rounded.float()).all():
            raise KeyFiltersError(
                f"{self.name}: {weight.dtype} cannot hold the new filters; its largest number is "
                f"{torch.finfo(weight.dtype).max:g}"
            )

        def write_() -> None:
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                weight.copy_(rounded)

        return write_

    def write_(self, filters: NDArray[Any] | Tensor) -> None:
        """Overwrite the filters in place; see `prepare`."""
        self.prepare(filters)()


def find_sites(
    model: Model, layers: Sequence[str] | None = None
) -> tuple[list[Site], dict[str, str]]:
    """Find the depthwise layers of a module or of a (possibly wrapped) state dict.

    Args:
        model: a module, or a mapping of tensors, which are written in place.
        layers: names, or patterns such as ``"stages.2.*"``; None takes all.

    Returns:
        The layers in the model's order, and the reason for each that is left alone, by name.

    Raises:
        NoFiltersError: the model has no depthwise layer.
        KeyFiltersError: a name or pattern in `layers` matches none; the nearest names are listed.

    >>> sites, left = find_sites(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8)))
    >>> [(site.name, site.size) for site in sites], left
    ([('1', (5, 5))], {})
    """
    if isinstance(layers, str):
        layers = [layers]
    found, left = _in_module(model) if isinstance(model, nn.Module) else _in_mapping(model, layers)
    if not found and not left:
        raise NoFiltersError("the model has no depthwise convolution, so there is nothing to write")
    return choose_sites(found, left, layers), left


def refuse_programs(sites: Sequence[Site]) -> None:
    """Raise if a layer is one of a scripted or exported program, whose parts cannot be followed."""
    for site in sites:
        if site.conv is None:
            raise KeyFiltersError(
                f"{site.name} belongs to a scripted or exported program; use the module it was "
                "made from (replacing without images and initialising work on the program too)"
            )


def choose_sites(
    sites: list[Site], left: dict[str, str], layers: Sequence[str] | None
) -> list[Site]:
    """Return the layers asked for; the others are noted in `left`.

    Raises:
        KeyFiltersError: a name or pattern matches none; the nearest names are listed.
    """
    if layers is None:
        return sites
    names = [site.name for site in sites]
    for wanted in layers:
        if not any(fnmatchcase(name, wanted) for name in names):
            tail = f": {left[wanted]}" if wanted in left else nearest(wanted, names)
            raise KeyFiltersError(f"no depthwise layer is called {wanted!r}{tail}")
    chosen = [site for site in sites if any(fnmatchcase(site.name, x) for x in layers)]
    left |= {site.name: NOT_ASKED for site in sites if site not in chosen}
    return chosen


def _in_module(model: nn.Module) -> tuple[list[Site], dict[str, str]]:
    left: dict[str, str] = {}
    sites = []
    for kernel in kernels(model):
        if not kernel.depthwise:
            if kernel.unwritable:  # a lazy one, that may become depthwise
                left[kernel.name] = kernel.unwritable
        elif kernel.unwritable:
            left[kernel.name] = kernel.unwritable
        elif kernel.owner:
            left[kernel.name] = f"shares its weights with {kernel.owner}"
        else:
            weight = next(iter(kernel.stored.values())) if kernel.plain else kernel.read()
            conv = kernel.module if isinstance(kernel.module, nn.Conv2d) else None
            sites.append(Site(kernel.name, weight, kernel.depth, conv, kernel))
    return sites, left


def _in_mapping(
    model: Mapping[str, Any], layers: Sequence[str] | None
) -> tuple[list[Site], dict[str, str]]:
    tensors, _ = unwrap(model)
    left: dict[str, str] = {}
    sites = []
    for layer in read_state_dict(model, "state dict").layers:
        weight = tensors.get(f"{layer.name}.weight", tensors.get(layer.name))
        if layer.note.startswith(FIRST) and layer.name not in (layers or ()):
            left[layer.name] = FIRST
        elif weight is None:
            left[layer.name] = SEVERAL_TENSORS
        elif reason := why_not_held(weight):
            left[layer.name] = reason
        else:
            sites.append(Site(layer.name, weight, layer.depth))
    return sites, left
