"""The depthwise layers of a model that filters are written to, and one report of what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.bank import FilterBank
from keyfilters.depthwise import ConvShape, Held, Kernel, extent, kernels, why_not_held
from keyfilters.errors import KeyFiltersError, NoFiltersError, nearest
from keyfilters.sources.statedicts import FIRST, read_state_dict, unwrap

__all__ = [
    "NOT_ASKED",
    "Model",
    "Target",
    "all_targets",
    "choose_targets",
    "find_targets",
    "is_named",
    "layer_table",
    "left_alone",
    "refuse_programs",
    "stored_target",
    "stored_targets",
    "write_all_",
]

Model = nn.Module | Mapping[str, Any]
T = TypeVar("T")
Filters = NDArray[Any] | Tensor

NOT_ASKED = "not among the layers asked for"
NOT_IN_PLACE = "it is an array that cannot be written to in place; pass a copy: array.copy()"
SEVERAL_TENSORS = "its kernel is made of several tensors; replace it in the module"


@dataclass(frozen=True, eq=False)
class Target(Kernel):
    """One depthwise layer of a model, as `keyfilters.read` names it.

    Attributes:
        left: why the layer is left alone; empty where it can be written to.
    """

    left: str = ""

    @property
    def conv(self) -> nn.Conv1d | nn.Conv2d | None:
        """The convolution; None in a state dict, a file or a program."""
        return self.module if isinstance(self.module, (nn.Conv1d, nn.Conv2d)) else None

    @property
    def weight(self) -> Tensor:
        """The tensor that the model holds, of one dimension ``(C, 1, k)``, or what several make."""
        return next(iter(self.stored.values())) if self.plain else self.read()

    @property
    def size(self) -> tuple[int, int]:
        """Kernel size ``(k_y, k_x)``."""
        assert self.shape is not None
        height, width = self.shape.kernel
        return height, width

    @property
    def channels(self) -> int:
        """Number of filters C."""
        assert self.shape is not None
        return self.shape.out_channels

    @property
    def filters(self) -> NDArray[np.float64]:
        """A copy of the filters that are convolved with, ``(C, k_y, k_x)``."""
        return self.read().cpu().double().numpy()[:, 0].copy()

    def finite_filters(self) -> NDArray[np.float64]:
        """Return `filters`, or raise a KeyFiltersError where one is not finite."""
        filters = self.filters
        if not np.isfinite(filters).all():
            raise KeyFiltersError(f"layer {self.name} holds filters that are not finite")
        return filters

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
        return self.plan(new[:, None])

    def write_(self, filters: Filters) -> None:
        """Overwrite the filters in place; see `prepare`."""
        self.prepare(filters)()


def stored_target(name: str, tensor: Tensor, depth: float) -> Target:
    """Return the target that is a tensor ``(C, 1, k_y, k_x)`` or ``(C, 1, k)`` of a file."""
    ndim = tensor.ndim - 2
    shape = ConvShape((1, *tensor.shape[2:])[-2:], None, len(tensor), 1)
    left = why_not_held(tensor)
    return Target(
        name, None, shape, Held(tensor), depth=depth, unwritable=left, ndim=ndim, left=left
    )


def left_alone(name: str, reason: str) -> Target:
    """Return a layer of which nothing is known but its name and why it is left alone."""
    return Target(name, None, depth=np.nan, left=reason)


def stored_targets(tensors: Mapping[str, Tensor], bank: FilterBank, model: str) -> list[Target]:
    """Return the places in named tensors of what a reader found among them.

    Args:
        tensors: of one set of weights.
        bank: what was read from them, under the name `model`; what it skipped is left alone, save
            convolutions that are not depthwise.
        model: see `bank`.
    """
    found = []
    for layer in bank.layers:
        weight = tensors.get(f"{layer.name}.weight", tensors.get(layer.name))
        if weight is None:
            found.append(left_alone(layer.name, SEVERAL_TENSORS))
            continue
        target = stored_target(layer.name, weight, layer.depth)
        found.append(replace(target, left=FIRST) if layer.note.startswith(FIRST) else target)
    for skipped, reason in bank.skipped:
        name = skipped.removeprefix(f"{model}/")
        weight = tensors.get(f"{name}.weight", tensors.get(name))
        if weight is None or weight.shape[1:2] == (1,):
            found.append(left_alone(name, reason))
    return found


def all_targets(model: Model, *, to_write: bool = True) -> list[Target]:
    """Return all depthwise layers of a module or a state dict, in the model's order.

    `to_write`: whether layers to which no filters can be written are left alone.
    """
    if not isinstance(model, nn.Module):
        tensors, own = unwrap(model)[0], set(_addresses(model))
        targets = stored_targets(tensors, read_state_dict(model, "state dict"), "state dict")
        return [
            replace(x, left=x.left or NOT_IN_PLACE, unwritable=x.unwritable or NOT_IN_PLACE)
            if any(held.data_ptr() not in own for held in x.stored.values())
            else x
            for x in targets
        ]
    found = []
    for kernel in kernels(model):
        tied = f"shares its weights with {kernel.owner}" if kernel.owner else ""
        left = (kernel.unwritable if to_write else "") or tied
        if kernel.depthwise or kernel.unwritable:  # a lazy one may become depthwise
            found.append(Target(**vars(kernel), left=left))
    return found


def _addresses(value: object, levels: int = 60) -> Iterator[int]:
    """Yield where the tensors and arrays of a checkpoint begin in memory."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        yield value.data_ptr()
    elif isinstance(value, np.ndarray):
        yield value.ctypes.data
    elif isinstance(value, (Mapping, list, tuple)) and levels:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _addresses(part, levels - 1)


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
    return choose_targets(all_targets(model), layers)


def choose_targets(
    found: Iterable[Target], layers: Sequence[str] | None
) -> tuple[list[Target], list[Target]]:
    """Split layers into those to write to and those left alone, see `find_targets`.

    A first layer that is probably not depthwise is written to only if its name is in `layers`.
    """
    layers = [layers] if isinstance(layers, str) else layers
    targets: list[Target] = []
    left: list[Target] = []
    for target in found:
        if target.left == FIRST and target.name in (layers or ()):
            target = replace(target, left=target.unwritable)
        (left if target.left else targets).append(target)
    if not targets and not left:
        raise NoFiltersError("the model has no depthwise convolution, so there is nothing to write")
    if layers is None:
        return targets, left
    names, reasons = [x.name for x in targets], {x.name: x.left for x in left}
    for wanted in layers:
        if not any(is_named(name, wanted) for name in names):
            tail = f": {reasons[wanted]}" if wanted in reasons else nearest(wanted, names)
            raise KeyFiltersError(f"no depthwise layer is called {wanted!r}{tail}")
    chosen = [x for x in targets if is_named(x.name, layers)]
    others = [x for x in targets if x not in chosen]
    return chosen, left + [replace(x, left=NOT_ASKED) for x in others]


def is_named(name: str, layers: Sequence[str] | str | None) -> bool:
    """Whether a layer is among those asked for: names or patterns, None for all."""
    patterns = [layers] if isinstance(layers, str) else layers
    return patterns is None or any(name == x or fnmatchcase(name, x) for x in patterns)


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
        if progress is not None:
            progress(target.name)
        try:
            filters, result = make(target)
            writes[target.name] = target.prepare(filters)
            made[target.name] = result
        except KeyFiltersError as error:
            reason = str(error).removeprefix(f"{target.name}: ")
            refused.append(replace(target, left=reason))
    if not writes:
        named: dict[str, list[str]] = {}
        for target in [*refused, *left]:
            named.setdefault(target.left, []).append(target.name)
        why = "; ".join(f"{_some(names)}: {reason}" for reason, names in named.items())
        raise KeyFiltersError(f"{failure}: {why}")
    left += refused
    for write_ in writes.values():
        write_()
    return made


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more layers" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


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
        if target.shape is not None:
            row |= {"size": extent(target.size), "filters": target.channels}
        table.append({**row, **rows.get(target.name, {})})
    names = ["layer", "size", "depth", "filters", *columns, "left"]
    frame = pd.DataFrame(table, columns=names)
    return frame.sort_values("depth", ignore_index=True, kind="stable")
