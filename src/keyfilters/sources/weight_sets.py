"""The sets of weights in a checkpoint, found by structure: mappings and lists of tensors.

A mapping whose names have dots, and a module, are a set; nested mappings without dots are joined to
one. A file may hold several: an average beside the weights, a generator and a discriminator.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from keyfilters.errors import SourceError, nearest
from keyfilters.sources.collect import Geometry
from keyfilters.sources.pickles import Thing
from keyfilters.sources.torch_tensors import StoredTensor, array_of

__all__ = ["Chosen", "WeightSet", "choose_set", "weight_sets"]

# Of several sets that which comes first here is read, an average over training first of all.
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net", "weights")
AVERAGE = re.compile(r"(^|[_.])(ema\d*|averaged?|avg|swa|shadow|polyak)([_.]|$)", re.I)
ROLES = re.compile(
    r"^(state_?dict|params?|weights|model|module|net(work)?|ema|shadow|student|teacher|online|target|"
    r"generator|discriminator|critic|net_?[gd]|[gd]|gen|disc|encoder_[qk]|momentum_encoder|"
    r"optim\w*)(_?[gd])?(_ema|_avg|_state(_dict)?|_net(work)?|_params|_model|_\d+)?$",
    re.I,
)
GENERATOR = re.compile(r"(^|[_.])(generator|gen|net_?g|g)([_.]|$)", re.I)
STATE = re.compile(
    r"optim(?!us|al|um)|^opts?(_|$)|exp_avg|momentum_buffer|^grads?$|gradients|scheduler|"
    r"(?<!up)(?<!down)scaler|^rng|_rng",
    re.I,
)
DEEPEST = 60
CONTEXTS = ("PackedParamsBase", "OpContext")  # objects that hold a convolution's weight


@dataclass
class WeightSet:
    """Tensors by name, and what modules tell of their convolutions.

    Attributes:
        name: where it lies, dotted; empty at the top.
        tensors: by name, in the file's order.
        geometry: of convolutions, by the name of the layer.
        channels: input channels of convolutions, by the name of the layer.
        whole: whether it stands for itself, and is not joined with its neighbours.
    """

    name: str
    tensors: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Geometry] = field(default_factory=dict)
    whole: bool = False

    @property
    def kernels(self) -> int:
        """Number of tensors that may be kernels of depthwise convolutions."""
        shapes = [x.shape for x in self.tensors.values()]
        return sum(len(x) > 2 and x[1] == 1 and x[0] > 1 for x in shapes)

    @property
    def has_filters(self) -> bool:
        """Whether it has tensors that may be kernels at all."""
        return any(len(x.shape) > 2 for x in self.tensors.values())


@dataclass
class Chosen:
    """The set that is read, why, and the names of the others with what they are."""

    set: WeightSet
    why: str
    others: list[tuple[str, str]]


def weight_sets(checkpoint: Any) -> tuple[list[WeightSet], list[str]]:
    """Return the sets of weights in a checkpoint, and the names of the states of optimisers.

    >>> from torch import ones
    >>> sets, states = weight_sets({"epoch": 3, "a": {"net": [{"c.weight": ones(2)}]}})
    >>> [(x.name, list(x.tensors)) for x in sets]
    [('a.net.0', ['c.weight'])]
    """
    if isinstance(checkpoint, WeightSet):
        return [checkpoint], []
    finder = _Finder()
    found = finder.sets(checkpoint, "", 0)
    # Statistics beside the weights are no set of their own.
    large = [x for x in found if x.has_filters] or found
    return [part for x in large for part in _by_role(x)], finder.states


class _Finder:
    """Walks through a checkpoint; what was seen once is not entered again."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.kept: list[Any] = []  # so that no id is given twice
        self.states: list[str] = []

    def sets(self, node: Any, name: str, level: int) -> list[WeightSet]:
        """Return the sets inside a part of a checkpoint."""
        children, direct, module = self._inside(node, name, level)
        found: list[WeightSet] = []
        for key, child in children:
            inside = f"{name}.{key}" if name else key
            found += self.sets(child, inside, level + 1)
        own = WeightSet(name, direct)
        if module is not None:
            own.whole = True
            own.tensors, own.geometry = module
            return [own, *found] if own.tensors else found
        if any("." in key for key in direct):
            own.whole = True
            return [own, *found]
        parts = [x for x in found if not x.whole]
        roles = len(parts) > 1 and any(ROLES.match(self._below(x.name, name)) for x in parts)
        if roles or len(parts) < 2 - bool(direct):
            return [*([own] if direct else []), *found]
        for part in parts:  # layers of one model
            prefix = part.name[len(name) :].lstrip(".")
            own.tensors |= {f"{prefix}.{key}": x for key, x in part.tensors.items()}
        return [own, *(x for x in found if x.whole)]

    def _below(self, name: str, parent: str) -> str:
        return name[len(parent) :].lstrip(".").partition(".")[0]

    def _inside(self, node: Any, name: str, level: int) -> tuple[list[Any], dict[str, Any], Any]:
        """Return (containers by key, tensors by key, tensors and geometry of a module)."""
        if level > DEEPEST or id(node) in self.seen:
            return [], {}, None
        if isinstance(node, (Mapping, list, tuple, Thing)):
            self.seen.add(id(node))
            self.kept.append(node)
        if isinstance(node, Thing):
            if is_module(node):
                module = _Module()
                module.walk(node, "", 0)
                return [], {}, (module.tensors, module.geometry)
            node = _contents(node)
        if isinstance(node, Mapping):
            if {"state", "param_groups"} <= node.keys():
                self.states.append(name or "state")
                return [], {}, None
            items: list[Any] = [(str(key), value) for key, value in node.items()]
        elif isinstance(node, (list, tuple)):
            pairs = [x for x in node if isinstance(x, (list, tuple)) and len(x) == 2]
            named = pairs and len(pairs) == len(node) and all(isinstance(x[0], str) for x in pairs)
            items = list(pairs) if named else [(str(i), x) for i, x in enumerate(node)]
        else:
            return [], {}, None
        direct, children = {}, []
        for key, value in items:
            value = array_of(value) if isinstance(value, Thing) else value
            if is_tensor(value):
                if not STATE.search(key) or key.endswith((".weight", ".kernel")):
                    direct[key] = value
                elif len(value.shape) > 2:
                    self.states.append(f"{name}.{key}" if name else key)
            elif isinstance(value, (Mapping, list, tuple, Thing)):
                if STATE.search(key):
                    self.states.append(f"{name}.{key}" if name else key)
                else:
                    children.append((key, value))
        return children, direct, None


def is_tensor(value: Any) -> bool:
    """Whether something is a tensor, in memory, in a file, or of NumPy."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiub"
    return isinstance(value, (Tensor, StoredTensor))


def is_module(thing: Thing) -> bool:
    """Whether an object that was not built would be a module, of Python or of TorchScript."""
    state = thing.state
    if not isinstance(state, dict):
        return False
    return "_modules" in state or thing.kind.startswith("__torch__")


def _contents(thing: Thing) -> Any:
    """Return what an object that is no module may hold tensors in."""
    parts = [thing.items, thing.listed, thing.state, thing.args]
    held = [x for x in parts if isinstance(x, (Mapping, list, tuple)) and len(x)]
    return held[0] if len(held) == 1 else {str(i): x for i, x in enumerate(held)}


class _Module:
    """Gathers the tensors of a pickled module under the names of its state dict."""

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}
        self.geometry: dict[str, Geometry] = {}

    def walk(self, thing: Thing, name: str, level: int) -> None:
        """Take the tensors of a module and of those inside it."""
        state = thing.state
        if isinstance(state, tuple) and len(state) > 8:  # a quantised layer, in order of arguments
            names = (
                "in_channels",
                "",
                "kernel_size",
                "stride",
                "padding",
                "dilation",
                "transposed",
            )
            told = dict(zip((*names, "", "groups"), state, strict=False))
            if (geometry := _geometry(told, thing.kind)) is not None:
                self.geometry[name] = geometry
            self._packed(thing, name)
        if level > DEEPEST or not isinstance(state, dict):
            return
        geometry = _geometry(state, thing.kind)
        if geometry is not None:
            self.geometry[name] = geometry
        own: list[Any] = [state] if "_modules" not in state else []
        own += [state.get(x) for x in ("_parameters", "_buffers", "_modules")]
        for part in own:
            for key, value in part.items() if isinstance(part, dict) else ():
                inside = f"{name}.{key}" if name else str(key)
                value = array_of(value) if isinstance(value, Thing) else value
                if is_tensor(value):
                    self.tensors[inside] = value
                elif isinstance(value, Thing) and value.kind.endswith(CONTEXTS):
                    self._packed(value, inside)
                elif isinstance(value, Thing):
                    self.walk(value, inside, level + 1)

    def _packed(self, thing: Thing, name: str) -> None:
        """Take the weight out of what the quantised and mobile backends keep packed."""
        layer = re.sub(r"\.?_packed_params$", "", name)
        stack, count = [thing.state, thing.args], 0
        while stack and count < 100:
            value, count = stack.pop(0), count + 1
            if isinstance(value, (list, tuple)):
                stack += list(value)
            elif is_tensor(value) and len(value.shape) > 2:
                self.tensors[f"{layer}.weight" if layer else "weight"] = value
                return


def _geometry(state: Mapping[str, Any], kind: str) -> Geometry | None:
    """Return what a module tells of its convolution; None of one that is none."""
    names = ("kernel_size", "stride", "dilation", "groups", "in_channels")
    if any(x not in state for x in names) or not isinstance(state["groups"], int):
        return None
    axes = len(state["kernel_size"]) if isinstance(state["kernel_size"], (list, tuple)) else 2

    def numbers(key: str) -> Any:
        value = state.get(key)
        if isinstance(value, str):
            return value if value == "same" else (0,) * axes
        value = (value,) * axes if isinstance(value, int) else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(x, int) for x in value):
            return None
        return tuple(value)

    transposed = bool(state.get("transposed")) or "Transpose" in kind
    return Geometry(
        state["groups"], transposed, numbers("stride"), numbers("dilation"), numbers("padding")
    )


def _by_role(found: WeightSet) -> list[WeightSet]:
    """Split a set whose names begin with parts that stand for several networks."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in found.tensors.items():
        groups.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
    special = [x for x in groups if ROLES.match(x) or AVERAGE.search(x)]
    shapes = [  # an average may be wrapped once more, and count its steps
        frozenset(
            (k.removeprefix("module."), tuple(y.shape))
            for k, y in groups[x].items()
            if len(y.shape) > 2
        )
        for x in special
    ]
    shapes = [x for x in shapes if x]
    twins = len(set(shapes)) < len(shapes)
    pairs = ({"generator", "discriminator"}, {"student", "teacher"}, {"net_g", "net_d"})
    named = any(pair <= {x.lower() for x in special} for pair in pairs)
    if len(special) < 2 or not (twins or named):
        return [found]
    parts = []
    for key in groups:
        geometry = {
            name.partition(".")[2]: x
            for name, x in found.geometry.items()
            if name.partition(".")[0] == key
        }
        name = f"{found.name}.{key}" if found.name else key
        part = WeightSet(name, groups[key], geometry, whole=True)
        parts += [part] if part.has_filters else []
    return parts or [found]


def choose_set(sets: list[WeightSet], states: list[str], wanted: str = "") -> Chosen:
    """Choose the set to read.

    Args:
        sets: at least one.
        states: names of the states of optimisers, which are never read.
        wanted: the name of a set, or its last part; empty for the default: an average over
            training, else the generator, else a set under a usual name, else the one with most
            kernels.

    Raises:
        SourceError: no set or several have this name; they are listed.
    """
    if wanted:
        named = [x for x in sets if wanted in (x.name, x.name.rpartition(".")[2])]
        named = [x for x in named if x.name == wanted] or named
        if len(named) != 1:
            names = [x.name or "the top" for x in sets]
            raise SourceError(
                f"there is no set of weights {wanted!r}; the file holds: {', '.join(names)}"
                if not named
                else f"{wanted!r} names several: {', '.join(x.name for x in named)}"
                f"{nearest(wanted, names)}"
            )
        best, why = named[0], "asked for"
    else:
        twins = Counter(map(_shapes, sets))
        (_, why), best = min(((_rank(x, twins), x) for x in sets), key=lambda pair: pair[0][0])
    reason = f"another set of weights; {best.name or 'the top'!r} was read"
    others = [(x.name or "the top", reason) for x in sets if x is not best]
    others += [(x, "the state of an optimiser or like, no weights") for x in states]
    return Chosen(best, why, others)


def _rank(one: WeightSet, twins: Counter[Hashable]) -> tuple[tuple[Any, ...], str]:
    """Return how late a set comes in the choice, and the reason if it comes first."""
    last = one.name.lower().split(".")
    twin = twins[_shapes(one)] > 1
    average = bool(AVERAGE.search(one.name)) or (
        twin and bool({"teacher", "target", "momentum_encoder"} & set(last))
    )
    generator = bool(GENERATOR.search(one.name))
    places = [WRAPPERS.index(x) for x in last if x in WRAPPERS]
    usual = min(places, default=len(WRAPPERS))
    why = "most kernels"
    if average:
        why = "an average over training"
    elif generator:
        why = "the generator"
    elif "student" in last:
        why = "the student, since the teacher is another network"
    elif places:
        why = "a usual name"
    some = one.kernels == 0
    return (some, not average, not generator, "student" not in last, usual, -one.kernels), why


def _shapes(one: WeightSet) -> Hashable:
    """Return what two copies of one network have in common."""
    return frozenset((name, tuple(x.shape)) for name, x in one.tensors.items())
