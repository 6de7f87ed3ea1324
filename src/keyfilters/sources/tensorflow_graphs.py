"""TensorFlow graphs: convolutions in their order, followed back to where the weights are stored.

Serves frozen graphs, SavedModel (whose graphs call functions) and TensorFlow.js.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Collector, Geometry, SkipError
from keyfilters.sources.content import mapped
from keyfilters.sources.tensorflow_nodes import MessageNode, Node, Stored
from keyfilters.sources.wire import Message

__all__ = ["Functions", "Graph", "offer_graph", "read_frozen_graph", "read_graph_def"]

KINDS = {
    "DepthwiseConv2dNative": "yxcm",
    "FusedDepthwiseConv2dNative": "yxcm",
    "Conv2D": "yxio",
    "_FusedConv2D": "yxio",
    "Conv2DBackpropInput": "yxoi",
    "Conv3D": "zyxio",
}
COPIES = ("Identity", "ReadVariableOp", "Cast", "StopGradient", "Enter", "CheckNumerics")
FAKE = ("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs")
VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
# Operators that call functions -> the attributes that name these.
CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "Case": ("branches",),
    "StatelessCase": ("branches",),
    "While": ("cond", "body"),
    "StatelessWhile": ("cond", "body"),
}
CHOOSING = ("If", "StatelessIf", "Case", "StatelessCase")  # by their first input
DEEPEST = 200  # operators in a row
MOST_CALLS, MOST_NODES = 20_000, 20_000_000
# Behind these the number of channels is not that of the first input.
RESHAPING = (
    "Reshape",
    "Transpose",
    "Concat",
    "ConcatV2",
    "Pack",
    "Split",
    "Squeeze",
    "StridedSlice",
)

Functions = Mapping[str, tuple[list[str], list[Node]]]


@dataclass
class Graph:
    """The operators of a graph, or of one call of a function.

    Attributes:
        nodes: in their order.
        functions: name -> (names of the arguments, operators).
        variables: returns a stored variable, or a constant kept elsewhere, by its name, or None.
        arguments: of a call: name -> (graph around it, name there).
        name: of the function; empty for the main graph.
        level: number of calls around it.
    """

    nodes: Iterable[Node]
    functions: Functions = field(default_factory=dict)
    variables: Callable[[str], Stored | None] = lambda name: None
    arguments: Mapping[str, tuple[Graph, str]] = field(default_factory=dict)
    name: str = ""
    level: int = 0

    def __post_init__(self) -> None:
        self.by_name = {node.name: node for node in self.nodes}

    def resolve(self, name: str) -> tuple[Stored, bool, int]:
        """Follow a weight back to where it is stored.

        Returns:
            The stored weight, whether it is rounded on the way, and the number of axes of extent
            one that are put before it.

        Raises:
            SkipError: it is no constant.
        """
        graph, fake, expanded = self, False, 0
        for _ in range(DEEPEST):
            if name in graph.arguments:
                graph, name = graph.arguments[name]
                continue
            node = graph.by_name.get(name)
            if node is None:
                raise SkipError(f"its weights are no constant: they come from {name!r}")
            if node.op in VARIABLES:
                shared = node.text("shared_name") or node.name
                if found := self.variables(shared) or self.variables(node.name):
                    return found, fake, expanded
                raise SkipError(f"its variable {shared!r} is not in the file")
            if node.op == "Const":
                if found := node.tensor() or self.variables(node.name):
                    return found, fake, expanded
                raise SkipError(f"its constant {node.name!r} is not in the file")
            expanded += node.op == "ExpandDims"
            fake |= node.op in FAKE
            if node.op not in (*COPIES, *FAKE, "ExpandDims") or not node.inputs:
                raise SkipError(f"its weights are made by {node.op}, which is not evaluated")
            name = node.inputs[0]
        raise SkipError(f"more than {DEEPEST} operators in a row make its weights")

    def channels(self, name: str) -> int | None:
        """Return the number of channels of a value; None where the graph does not tell."""
        graph = self
        for _ in range(DEEPEST):
            if name in graph.arguments:
                graph, name = graph.arguments[name]
                continue
            node = graph.by_name.get(name)
            if node is None or node.op in RESHAPING or not node.inputs:
                return None
            if (layout := KINDS.get(node.op)) and len(node.inputs) > 1:
                try:
                    weight, _, expanded = graph.resolve(node.inputs[1])
                except SkipError:
                    return None
                shape = (1,) * expanded + weight.shape
                if len(shape) != len(layout):
                    return None
                return shape[2] * shape[3] if "m" in layout else shape[layout.index("o")]
            name = node.inputs[0]
        return None


def offer_graph(collector: Collector, graph: Graph) -> None:
    """Offer the convolutions of a graph and of the functions that it calls, each weight once."""
    called: set[Hashable] = set()
    homes: dict[Hashable, str] = {}
    _offer_graph(collector, graph, called, homes)


def _offer_graph(
    collector: Collector, graph: Graph, called: set[Hashable], homes: dict[Hashable, str]
) -> None:
    for node in graph.by_name.values():
        if node.op in KINDS:
            try:
                _offer(collector, graph, node, homes)
            except SkipError as error:
                collector.skip(node.name, str(error))
            continue
        names = [x for attribute in CALLS.get(node.op, ()) for x in node.functions(attribute)]
        if node.op in graph.functions:  # the older way to call one
            names = [node.op]
        elif "Conv" in node.op and "Backprop" not in node.op:
            collector.skip(node.name, f"operator {node.op}, which is not read")
        names = [x for x in dict.fromkeys(names) if x in graph.functions]
        if not names or graph.level > DEEPEST // 4:
            continue
        inputs = node.inputs[node.op in CHOOSING :]
        places = [_place(graph, x) for x in inputs]
        for name in names:
            arguments, nodes = graph.functions[name]
            key = (name, tuple(places[: len(arguments)]))
            if key in called:
                continue
            called.add(key)
            bound = {x: (graph, y) for x, y in zip(arguments, inputs, strict=False)}
            if len(called) > MOST_CALLS or len(called) * len(nodes) > MOST_NODES:
                raise ValueError("functions call each other too often")
            inner = Graph(nodes, graph.functions, graph.variables, bound, name, graph.level + 1)
            _offer_graph(collector, inner, called, homes)


def _place(graph: Graph, name: str) -> Hashable:
    """Return what tells an argument from others: the variable it is, or that it is none."""
    try:
        return graph.resolve(name)[0].identity
    except SkipError:
        return None


def _offer(collector: Collector, graph: Graph, node: Node, homes: dict[Hashable, str]) -> None:
    layout = KINDS[node.op]
    if len(node.inputs) < 2:
        raise ValueError(f"{node.op} lacks its inputs")
    weight, fake, expanded = graph.resolve(node.inputs[1])
    if homes.setdefault(weight.identity, graph.name) != graph.name:
        return  # another function of the same network
    ndim = len(layout) - 2
    shape = weight.shape
    if expanded and len(shape) == len(layout) - 1:
        layout, ndim = layout[1:], ndim - 1
    first = 1 + (node.text("data_format") in ("NCHW", "NCDHW"))
    axes = slice(first + len(KINDS[node.op]) - 2 - ndim, first + len(KINDS[node.op]) - 2)
    groups = None
    if "c" not in layout and len(shape) == len(layout) and "Backprop" not in node.op:
        channels = graph.channels(node.inputs[0])
        each = shape[layout.index("i")]
        groups = channels // each if channels and each and not channels % each else None
        if groups is None and each == 1:
            taps = "×".join(map(str, shape[:ndim]))
            raise SkipError(f"{taps} convolution of a one-channel input, as far as the graph tells")
    padding, blocks = node.text("padding").lower(), _dilation(graph, node, axes)
    geometry = Geometry(
        groups=1 if "Backprop" in node.op else groups,
        transposed="Backprop" in node.op,
        stride=_axes(node.ints("strides"), axes),
        dilation=blocks or _axes(node.ints("dilations"), axes) or (1,) * ndim,
        padding=None if blocks else "same" if padding == "same" else (0,) * ndim,
    )
    note = "stored before its rounding to a few bits" if fake else ""
    name = node.name if not graph.name else weight.name or node.name
    collector.kernel(
        name, layout, shape, weight.load, geometry, identity=weight.identity, note=note
    )


def _axes(numbers: list[int], axes: slice) -> tuple[int, ...] | None:
    return tuple(numbers[axes]) if len(numbers) > 3 else None


def _dilation(graph: Graph, node: Node, axes: slice) -> tuple[int, ...] | None:
    """Return the dilation that Keras writes as SpaceToBatchND before the convolution.

    Its blocks count from the axis behind the batch, be this one of the convolution's or not.
    """
    before = graph.by_name.get(node.inputs[0])
    if before is None or before.op != "SpaceToBatchND" or len(before.inputs) < 2:
        return None
    rank = len(KINDS[node.op])
    try:
        stored = graph.resolve(before.inputs[1])[0]
        if prod(stored.shape) >= rank:
            raise ValueError(f"{before.name} has blocks along more axes than there are")
        block = np.asarray(stored.load()).ravel()
    except SkipError:
        return None
    numbers = [1, *(int(x) for x in block)]
    return _axes(numbers + [1] * (rank - len(numbers)), axes)


def restored_names(nodes: list[Node], functions: Functions) -> dict[str, str]:
    """Return the names under which a SavedModel's variables are stored, by the variables' own.

    The graph itself tells: it assigns to every variable what RestoreV2 reads under a name.
    """
    by_name = {node.name: node for node in nodes}
    found: dict[str, str] = {}
    calls = [(x, *functions[y]) for x in nodes for y in x.functions("f") if y in functions]
    for call, arguments, inner in calls:
        held = {node.name: node for node in inner}
        restore = next((x for x in inner if x.op == "RestoreV2" and len(x.inputs) > 1), None)
        names = held.get(restore.inputs[1]) if restore else None
        if names is None:
            continue
        keys = names.texts("value")
        bound = dict(zip(arguments, call.inputs, strict=False))
        for node in inner:
            if node.op != "AssignVariableOp" or len(node.inputs) < 2:
                continue
            variable = by_name.get(bound.get(node.inputs[0], ""))
            source = held.get(node.inputs[1])
            origin = source.raw_inputs[0] if source and source.raw_inputs else ""
            place = re.search(r":tensors:(\d+)$", origin)
            if variable is not None and place and int(place[1]) < len(keys):
                found[variable.text("shared_name") or variable.name] = keys[int(place[1])]
    return found


def read_graph_def(message: Message) -> tuple[list[Node], Functions]:
    """Return the operators and the functions of a GraphDef."""
    functions: dict[str, tuple[list[str], list[Node]]] = {}
    for function in message.message(2).messages(1):
        signature = function.message(1)
        arguments = [x.text(1) for x in signature.messages(2)]
        functions[signature.text(1)] = arguments, [MessageNode(x) for x in function.messages(3)]
    return [MessageNode(x) for x in message.messages(1)], functions


def read_frozen_graph(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of a frozen graph (``.pb``), in the order of its operators."""
    collector = Collector(model)
    nodes, functions = read_graph_def(Message(mapped(path)))
    offer_graph(collector, Graph(nodes, functions))
    return collector.bank()
