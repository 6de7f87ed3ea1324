"""The constants of an ONNX graph: a weight followed back to what is stored.

Exporters keep a weight as an initialiser, as a Constant node, in a file beside the model, or as
integers and scales that a few operators turn into numbers. ONNX's own reference implementation
evaluates the operators in between, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfilters.errors import SourceError
from keyfilters.sources.content import beside

__all__ = [
    "Array",
    "NotConstantError",
    "Proto",
    "Scope",
    "attribute",
    "damaged",
    "evaluate",
    "subgraphs",
]

Array = NDArray[Any]  # of any number type, also those of ml_dtypes
Proto = Any  # protobuf makes its classes at run time, so there are no types to name

# Operators behind which a parameter stays the same parameter, of the same shape.
COPIES = ("Identity", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear")
DEEPEST = 100  # operators in a row between what is stored and a weight; ten would be many
# What damaged tensors raise on the way to an array.
BROKEN = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)
# Operators that a weight has no use for, and that are random, or large from small inputs.
UNEVALUATED = ("Random", "Bernoulli", "Multinomial", "Range", "EyeLike", "OneHot", "Resize")
GROWING = ("Tile", "Expand", "ConstantOfShape", "Pad")
LARGEST = 2**27  # elements of a computed tensor: far above any weight, far below any memory


def damaged(path: Path, what: str) -> SourceError:
    """Return the error that says what is wrong with a file."""
    what = " ".join(what.split())  # errors of onnx and protobuf have several lines
    return SourceError(
        f"{path} is not a readable ONNX model: expected a whole ModelProto, it {what}"
    )


class NotConstantError(Exception):
    """A weight is not known, or not computed here, before the model runs; says why."""


class Scope:
    """The names that a graph can see, and the constants behind them.

    Args:
        graph: the GraphProto.
        path: the file, whose folder holds the external data.
        opsets: version of the operator set by domain.
        outer: scope of the graph around this one.
    """

    def __init__(
        self, graph: Proto, path: Path, opsets: dict[str, int], outer: Scope | None = None
    ) -> None:
        self.graph, self.path, self.opsets, self.outer = graph, path, opsets, outer
        for node in graph.node:
            texts = (node.op_type, node.domain, node.name, *node.input, *node.output)
            if not all(isinstance(text, str) for text in texts):  # so protobuf returns bad UTF-8
                raise damaged(path, "holds a name that is no text")
        self.inputs = {value.name for value in graph.input}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.computed: dict[str, Array] = {}
        for node in graph.node:
            if node.op_type == "Constant" and len(node.output) == 1:
                value = attribute(node, "value", "t")
                self.tensors |= {node.output[0]: value} if value is not None else {}

    def inner(self, graph: Proto) -> Scope:
        """Return the scope of a subgraph."""
        return Scope(graph, self.path, self.opsets, self)

    def users(self, name: str, op_type: str) -> list[Proto]:
        """Return the operators of one type that use a value of this graph."""
        return [x for x in self.graph.node if x.op_type == op_type and name in x.input]

    def home(self, name: str) -> Scope:
        """Return the scope that defines a name: this one or one around it."""
        if any(name in names for names in (self.tensors, self.sparse, self.makers, self.inputs)):
            return self
        if self.outer is None:
            raise damaged(self.path, f"uses a tensor {name!r} that it does not define")
        return self.outer.home(name)

    def parameter(self, name: str) -> tuple[Scope, str]:
        """Follow a name back through copies and changes of type; equal for shared weights."""
        scope = self.home(name)
        for _ in range(DEEPEST):
            maker = scope.makers.get(name)
            if name in scope.tensors or maker is None or maker.op_type not in COPIES:
                break
            name = maker.input[0]
            scope = scope.home(name)
        return scope, name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a constant's shape; what is stored is not loaded for it."""
        scope, name = self.parameter(name)
        return tuple(scope.tensors[name].dims if name in scope.tensors else scope.array(name).shape)

    def array(self, name: str, depth: int = 0) -> Array:
        """Return a constant's value in its own type.

        Raises:
            NotConstantError: it depends on an input, or is not computed here.
        """
        if (scope := self.home(name)) is not self:
            return scope.array(name, depth)
        if name in self.tensors:
            return _load(self.tensors[name], self.path)
        if name in self.sparse:
            raise NotConstantError(f"its weights are the sparse initialiser {name!r}, not read")
        if name not in self.makers:
            raise NotConstantError(
                f"its weights are no constant: they come from the input {name!r}"
            )
        if depth > DEEPEST:
            raise NotConstantError(f"more than {DEEPEST} operators in a row make its weights")
        if name not in self.computed:
            node = self.makers[name]
            feeds = {x: self.array(x, depth + 1) for x in node.input if x}
            values = evaluate(node, feeds, self.opsets)
            self.computed.update(zip(node.output, values, strict=False))
        return self.computed[name]


def _load(tensor: Proto, path: Path) -> Array:
    """Return a stored tensor as an array."""
    from onnx import TensorProto, checker, numpy_helper

    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor = _with_external_data(tensor, path)
        return np.asarray(numpy_helper.to_array(tensor))
    except SourceError:
        raise
    except (*BROKEN, checker.ValidationError) as error:
        what = f"holds a tensor {tensor.name!r} of shape {tuple(tensor.dims)} that cannot be loaded"
        raise damaged(path, f"{what} ({error})") from error


def _with_external_data(tensor: Proto, path: Path) -> Proto:
    """Return a copy of a tensor with its external data, which `beside` allows."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    loaded = TensorProto()
    loaded.CopyFrom(tensor)
    entry = next((x for x in loaded.external_data if x.key == "location"), None)
    if entry is None:
        raise SourceError(f"{path} keeps {tensor.name!r} in a file that it does not name")
    # onnx checks the location too, how well depends on its version, and takes no link of a cache.
    file = beside(path, entry.value).resolve()
    entry.value = file.name
    load_external_data_for_tensor(loaded, str(file.parent))
    # Older versions of onnx leave the mark, and seek the file again, in the working folder.
    loaded.data_location = TensorProto.DEFAULT
    del loaded.external_data[:]
    return loaded


def evaluate(node: Proto, feeds: dict[str, Array], opsets: dict[str, int]) -> Sequence[Array]:
    """Return the outputs of one operator, by ONNX's reference implementation."""
    from onnx import NodeProto, TensorProto, ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    external = any(x.t.data_location == TensorProto.EXTERNAL for x in node.attribute)
    if external or node.op_type.startswith(UNEVALUATED) or any(subgraphs(node)):
        raise NotConstantError(f"its weights are made by {node.op_type}, which is not evaluated")
    if node.op_type == "DequantizeLinear":
        # ONNX implements its newest versions only; older ones, and onnxruntime's, are parts of it.
        node = NodeProto.FromString(node.SerializeToString())
        node.domain, opsets = "", {"": max(opsets.get("", 0), 21)}
    inputs, outputs = ([ValueInfoProto(name=x) for x in names] for names in (feeds, node.output))
    graph = helper.make_graph([node], "one node", inputs, outputs)
    try:
        _refuse_giant(node, feeds)
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(graph, opsets=opsets).run(None, feeds)
    # The implementations check little: operands that do not fit raise whatever NumPy happens to.
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        reason = f"its weights are made by {node.op_type}, which cannot be evaluated ({what})"
        raise NotConstantError(reason) from error
    if not all(isinstance(value, np.ndarray) for value in values):
        raise NotConstantError(f"its weights are made by {node.op_type}, not as a dense tensor")
    return values


def _refuse_giant(node: Proto, feeds: dict[str, Array]) -> None:
    """Refuse to fill the memory with the result of an operator that makes more of its input.

    ONNX's own shape inference would tell the size, but it ends the process on damaged operators.
    """
    factors = [abs(int(v)) + 1 for x in feeds.values() if x.dtype == np.int64 for v in x.flat]
    if node.op_type in GROWING and max(x.size for x in feeds.values()) * prod(factors) > LARGEST:
        raise MemoryError("the result would have too many elements")


def attribute(node: Proto, name: str, field: str) -> Any:
    """Return one field of an attribute, empty if it is of another type, or None if missing."""
    return next((getattr(x, field) for x in node.attribute if x.name == name), None)


def subgraphs(node: Proto) -> Iterator[Proto]:
    """Yield the graphs inside an operator: branches and bodies."""
    for field in node.attribute:
        if field.HasField("g"):
            yield field.g
        yield from field.graphs
