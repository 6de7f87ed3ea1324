"""The depthwise layers of a model that filters are written to, and one report of what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.depthwise import ConvShape, Held, Kernel, extent, kernels, why_not_held
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.sources.statedicts import FIRST, read_state_dict, unwrap

__all__ = [
    "NOT_ASKED",
    "SEVERAL_TENSORS",
    "Model",
    "Target",
    "choose_targets",
    "find_targets",
    "is_named",
    "layer_table",
    "refuse_programs",
    "stored_target",
    "write_all_",
]

Model = nn.Module | Mapping[str, Any]
T = TypeVar("T")
Filters = NDArray[Any] | Tensor

NOT_ASKED = "not among the layers asked for"
SEVERAL_TENSORS = "its kernel is made of several tensors; replace it in the module"


@dataclass(frozen=True, eq=False)
class Target:
    """One depthwise layer of a model, as `keyfilters.read` names it.

    Attributes:
        name: of the layer.
        kernel: its weight and how it is written; None where nothing is known of it.
        left: why the layer is left alone; empty where it can be written to.
    """

    name: str
    kernel: Kernel | None = None
    left: str = ""

    @property
    def known(self) -> Kernel:
        """The kernel of a layer that can be written to."""
        assert self.kernel is not None
        return self.kernel

    @property
    def conv(self) -> nn.Conv1d | nn.Conv2d | None:
        """The convolution; None in a state dict, a file or a program."""
        module = self.known.module
        return module if isinstance(module, (nn.Conv1d, nn.Conv2d)) else None

    @property
    def weight(self) -> Tensor:
        """The tensor that the model holds, of one dimension ``(C, 1, k)``, or what several make."""
        return next(iter(self.known.stored.values())) if self.known.plain else self.known.read()

    @property
    def size(self) -> tuple[int, int]:
        """Kernel size ``(k_y, k_x)``."""
        height, width = self._shape.kernel
        return height, width

    @property
    def channels(self) -> int:
        """Number of filters C."""
        return self._shape.out_channels

    @property
    def depth(self) -> float:
        """Relative depth in [0, 1] among the model's depthwise layers; NaN where unknown."""
        return np.nan if self.kernel is None else self.kernel.depth

    @property
    def filters(self) -> NDArray[np.float64]:
        """A copy of the filters that are convolved with, ``(C, k_y, k_x)``."""
        return self.known.read().cpu().double().numpy()[:, 0].copy()

    @property
    def _shape(self) -> ConvShape:
        assert self.known.shape is not None
        return self.known.shape

    def prepare(self, filters: Filters) -> Callable[[], None]:
        """Check that filters ``(C, k_y, k_x)`` can be written here, and return what writes them.

        Raises:
            KeyFiltersError: another shape, a number that is not finite or becomes so when it is
                rounded to the weight's dtype, or filters that the layer cannot hold. The model is
                unchanged.
        """
        new, expected = torch.as_tensor(filters), (self.channels, *self.size)
        if new.shape != expected:
            shape = tuple(new.shape)
            raise KeyFiltersError(f"{self.name}: its filters have shape {expected}, got {shape}")
        if not torch.isfinite(new).all():
            raise KeyFiltersError(f"{self.name}: its filters would not be finite")
        return self.known.plan(new[:, None])

    def write_(self, filters: Filters) -> None:
        """Overwrite the filters in place; see `prepare`."""
        self.prepare(filters)()


def stored_target(name: str, tensor: Tensor, depth: float) -> Target:
    """Return the target that is a plain tensor of a state dict or file.

    Args:
        name: of the layer.
        tensor: ``(C, 1, k_y, k_x)``, or ``(C, 1, k)`` of a convolution of one dimension.
        depth: see `Target`.
    """
    ndim = tensor.ndim - 2
    size = tuple(tensor.shape[2:])
    shape = ConvShape((1, *size) if ndim == 1 else size, None, len(tensor), 1)
    left = why_not_held(tensor)
    kernel = Kernel(name, None, shape, Held(tensor), depth=depth, unwritable=left, ndim=ndim)
    return Target(name, kernel, left)


def find_targets(
    model: Model, layers: Sequence[str] | None = None
) -> tuple[list[Target], list[Target]]:
    """Find the depthwise layers of a module or of a (possibly wrapped) state dict.

    Args:
        model: a module, or a mapping of tensors, which are written in place.
        layers: names, or patterns such as ``"stages.2.*"``; None takes all.

    Returns:
        The layers to write to in the model's order, and those that are left alone.

    Raises:
        NoFiltersError: the model has no depthwise layer.
        KeyFiltersError: a name or pattern in `layers` matches none; the nearest names are listed.

    >>> found, left = find_targets(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8)))
    >>> [(target.name, target.size) for target in found], left
    ([('1', (5, 5))], [])
    """
    layers = [layers] if isinstance(layers, str) else layers
    if isinstance(model, nn.Module):
        return choose_targets(_in_module(model), layers)
    return choose_targets(_in_mapping(model, layers or ()), layers)


def choose_targets(
    found: Iterable[Target], layers: Sequence[str] | None
) -> tuple[list[Target], list[Target]]:
    """Split layers into those to write to and those left alone, see `find_targets`."""
    targets: list[Target] = []
    left: list[Target] = []
    for target in found:
        (left if target.left else targets).append(target)
    if not targets and not left:
        raise NoFiltersError("the model has no depthwise convolution, so there is nothing to write")
    if layers is None:
        return targets, left
    layers = [layers] if isinstance(layers, str) else layers
    names, reasons = [x.name for x in targets], {x.name: x.left for x in left}
    for wanted in layers:
        if not any(fnmatchcase(name, wanted) for name in names):
            tail = f": {reasons[wanted]}" if wanted in reasons else nearest(wanted, names)
            raise KeyFiltersError(f"no depthwise layer is called {wanted!r}{tail}")
    chosen = [x for x in targets if is_named(x.name, layers)]
    others = [x for x in targets if x not in chosen]
    return chosen, left + [replace(x, left=NOT_ASKED) for x in others]


def is_named(name: str, layers: Sequence[str] | str | None) -> bool:
    """Whether a layer is among those asked for: names or patterns, None for all."""
    patterns = [layers] if isinstance(layers, str) else layers
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def refuse_programs(targets: Iterable[Target]) -> None:
    """Raise if a layer is one of a scripted or exported program, whose parts cannot be followed."""
    for target in targets:
        if target.conv is None:
            raise KeyFiltersError(
                f"{target.name} belongs to a scripted or exported program; use the module it was "
                "made from (replacing without images and initialising work on the program too)"
            )


def write_all_(
    targets: Iterable[Target],
    left: list[Target],
    make: Callable[[Target], tuple[Filters, T]],
    failure: str,
    progress: Callable[[str], None] | None = None,
) -> dict[str, T]:
    """Make and check the filters of all layers, then write them, in place.

    `make` returns the filters of a layer and what is returned for it, by name. Layers for which
    it or the check raises join `left`; if none can be written, a message that begins with
    `failure` is raised and the model is unchanged. `progress` is called with every name.
    """
    made: dict[str, T] = {}
    writes, refused = {}, []
    for target in targets:
        try:
            filters, result = make(target)
            writes[target.name] = target.prepare(filters)
            made[target.name] = result
        except KeyFiltersError as error:
            reason = str(error).removeprefix(f"{target.name}: ")
            refused.append(replace(target, left=reason))
    if not writes:
        why = "; ".join(f"{x.name}: {x.left}" for x in [*refused, *left])
        raise KeyFiltersError(f"{failure}: {why}")
    left += refused
    for name, write_ in writes.items():
        if progress is not None:
            progress(name)
        write_()
    return made


def layer_table(
    targets: Sequence[Target],
    left: Sequence[Target],
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> pd.DataFrame:
    """Return the report of all surgery: one row a layer, by depth.

    The columns are layer, size, depth, filters (number of them), those of `rows`, and left: why the
    layer was left alone, or empty.
    """
    alone = {target.name for target in left}
    table = []
    for target in [*(x for x in targets if x.name not in alone), *left]:
        row: dict[str, Any] = {"layer": target.name, "depth": target.depth, "left": target.left}
        if target.kernel is not None and target.kernel.shape is not None:
            row |= {"size": extent(target.size), "filters": target.channels}
        table.append({**row, **rows.get(target.name, {})})
    names = ["layer", "size", "depth", "filters", *columns, "left"]
    frame = pd.DataFrame(table, columns=names)
    return frame.sort_values("depth", ignore_index=True, kind="stable")


def _in_module(model: nn.Module) -> list[Target]:
    found = []
    for kernel in kernels(model):
        tied = f"shares its weights with {kernel.owner}" if kernel.owner else ""
        if kernel.depthwise or kernel.unwritable:  # a lazy one may become depthwise
            found.append(Target(kernel.name, kernel, kernel.unwritable or tied))
    return found


def _in_mapping(model: Mapping[str, Any], layers: Sequence[str]) -> list[Target]:
    tensors, _ = unwrap(model)
    found = []
    for layer in read_state_dict(model, "state dict").layers:
        weight = tensors.get(f"{layer.name}.weight", tensors.get(layer.name))
        if weight is None:
            target = Target(layer.name, left=SEVERAL_TENSORS)
        else:
            target = stored_target(layer.name, weight, layer.depth)
            if layer.note.startswith(FIRST) and layer.name not in layers:
                target = replace(target, left=FIRST)
        found.append(target)
    return found
