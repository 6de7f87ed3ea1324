"""The depthwise filters of an ONNX file as places that can be written, and written back."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from keyfilters.errors import SourceError
from keyfilters.sources.collect import SkipError
from keyfilters.sources.onnx_constants import Proto, Scope, _load, _with_external_data, attribute
from keyfilters.sources.onnx_files import DOMAINS, WEIGHT, _read_graph, read_onnx
from keyfilters.surgery.finder import Finder, Found, Opened

__all__ = ["open_onnx"]

# By TensorProto's numbers of FLOAT, FLOAT16, DOUBLE and BFLOAT16.
DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
IN_FUNCTION = "in a local function; inline it first: onnx.inliner.inline_local_functions(model)"
TYPED = ("float_data", "int32_data", "double_data")  # where these are kept if not as raw bytes

Constant = tuple[Scope, str]  # the scope that defines a name, and the name


def open_onnx(path: Path) -> Opened:
    """Find the depthwise filters of an ONNX file that can be written back.

    They are named as `kf.read` names them; a second layer of one name is called ``"NAME (2)"``.
    Weights may be initialisers or Constant nodes of the model or of its subgraphs, in or outside
    the file, as float16, bfloat16, float32 or float64, also behind Identity and Cast. Weights that
    are quantised, computed, used by anything but a depthwise convolution, or in a local function,
    are left alone.

    Returns:
        The layers in graph order, some with the reason why they are left alone; and the function
        that writes the model to a path, given the names of the layers changed. External data then
        lie in ``NAME.data`` beside it, under another name only if the source uses that one.

    Raises:
        MissingExtraError: the package onnx is not installed.
        SourceError: the file is damaged; when writing: external data are missing, or the result
            fails ONNX's checker, which the source passes.
    """
    bank = read_onnx(path, path.stem)  # says what is wrong with a damaged file
    import onnx

    # As it is stored; the reader, which writes nothing, inlines local functions.
    proto = onnx.load(path, format="protobuf", load_external_data=False)
    opsets = {"" if x.domain == "ai.onnx" else x.domain: x.version for x in proto.opset_import}
    root, finder = _Scope(proto.graph, path, opsets), Finder()
    _read_graph(root, finder)
    for layer in bank.layers:
        if layer.name not in finder.found:
            finder.left.setdefault(layer.name, IN_FUNCTION)
    uses, stored = _uses(root), {}

    def kernel(name: str, conv: Found) -> Tensor:
        scope, constant = cast(Constant, conv.identity)
        _require_writable(scope, constant, uses)
        stored[name] = scope.tensors[constant]
        filters = torch.from_numpy(scope.array(constant).astype(np.float64))  # for want of bfloat16
        filters = filters.view(conv.shape.out_channels, 1, *conv.shape.kernel)
        return filters.to(DTYPES[stored[name].data_type])

    targets = finder.targets(kernel)

    def save(target: Path, written: Collection[str]) -> None:
        _gather_external_data_(proto, path, target.name)
        for layer in targets:
            if layer.name in written:
                _store_(stored[layer.name], layer.weight)
        onnx.save(proto, str(target), format="protobuf")
        if (flaw := _flaw(target)) is None:
            return
        if _flaw(path) is None:
            raise SourceError(f"{path} would become invalid, so nothing was written: {flaw}")
        # Runtimes are less strict than the checker, so that it is no reason to refuse.
        warnings.warn(f"{path} itself fails ONNX's checker ({flaw})", stacklevel=3)

    return targets, save


class _Scope(Scope):
    """A scope that remembers those inside it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.all: list[_Scope] = [self]

    def inner(self, graph: Proto) -> Scope:
        scope = _Scope(graph, self.path, self.opsets, self)
        scope.all = self.all
        self.all.append(scope)
        return scope


Uses = dict[Constant, list[tuple[_Scope, Proto, int]]]


def _uses(root: _Scope) -> Uses:
    """Return who takes a name: scope, operator (None for a graph's output) and which input."""
    uses: Uses = defaultdict(list)
    for scope in root.all:
        taken = [(node, i, name) for node in scope.graph.node for i, name in enumerate(node.input)]
        taken += [(None, 0, output.name) for output in scope.graph.output]
        for node, i, name in taken:
            if name:  # which optional inputs may lack
                uses[scope.home(name), name].append((scope, node, i))
    return uses


def _require_writable(scope: Scope, name: str, uses: Uses) -> None:
    """Raise a SkipError with the reason why a weight cannot be written."""
    from onnx import TensorProto

    if name not in scope.tensors:
        made = f"its weights are made by {scope.makers[name].op_type}"
        raise SkipError(f"{made}, and not stored as they are")
    if (number := scope.tensors[name].data_type) not in DTYPES:
        kind = f"its weights are quantised, stored as {TensorProto.DataType.Name(number)}"
        raise SkipError(f"{kind}; export the model without quantisation")
    for stranger in _strangers(scope, name, uses):
        raise SkipError(f"its weights are also used by {stranger}, which would change")


def _strangers(scope: Scope, name: str, uses: Uses) -> Iterator[str]:
    """Yield all that takes a constant and is not a depthwise convolution that it weights."""
    same = [(scope, name)]  # grows by the copies of the constant
    for inside, node, position in (use for constant in same for use in uses[constant]):
        if node is None:
            yield f"an output of {inside.graph.name}"
        elif node.op_type == "Identity" or (
            node.op_type == "Cast" and attribute(node, "to", "i") in DTYPES
        ):
            same += [(inside, x) for x in node.output if (inside, x) not in same]
        elif not (
            # One channel a filter was seen already, so several groups make it depthwise.
            node.op_type in ("Conv", "FusedConv")
            and node.domain in DOMAINS
            and position == WEIGHT[node.op_type]
            and (attribute(node, "group", "i") or 1) > 1
        ):
            yield f"{node.op_type} {node.name or ', '.join(node.output)!r}"


def _flaw(path: Path) -> str | None:
    """Return what ONNX's checker has against a file, None if nothing."""
    from onnx import checker

    try:
        checker.check_model(str(path))  # by its path, which has no limit of 2 GiB
    except checker.ValidationError as error:
        return " ".join(str(error).split())
    return None


def _store_(tensor: Proto, weight: Tensor) -> None:
    """Write weights into a TensorProto of their dtype."""
    for field in TYPED:
        tensor.ClearField(field)
    tensor.raw_data = weight.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _gather_external_data_(proto: Proto, path: Path, name: str) -> None:
    """Load all external data of a model, to be saved in one file of the folder it goes to."""
    from onnx.external_data_helper import set_external_data

    tensors = list(_external(proto))
    held = {PurePath(x.value).name for t in tensors for x in t.external_data if x.key == "location"}
    while f"{name}.data" in held:  # that file may be the source's
        name += "-replaced"
    for tensor in tensors:
        _load(tensor, path)  # says what is wrong with it
        tensor.raw_data = _with_external_data(tensor, path).raw_data
        set_external_data(tensor, f"{name}.data")


def _external(message: Proto) -> Iterator[Proto]:
    """Yield the tensors in a message whose data lies outside the file."""
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if not isinstance(part, TensorProto):
                yield from _external(part)
            elif part.data_location == TensorProto.EXTERNAL:
                yield part
