"""Convolutions of scripted, traced and exported programs, whose modules are no `nn.Conv2d`."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from keyfilters.depthwise.forms import Held
from keyfilters.depthwise.shapes import ConvShape
from keyfilters.passes import clean_name

__all__ = ["program_kernels"]

# Where dilation and groups stand among the arguments; the stride is always the fourth.
ATEN = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (5, 6)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (7, 6)),
    **dict.fromkeys(("convolution", "_convolution"), (5, 8)),
}


def program_kernels(root: nn.Module) -> list[dict[str, Any]]:
    """Return the fields of `Kernel` of every convolution, in the order of an exported graph."""
    return _exported(root) if isinstance(root, fx.GraphModule) else _scripted(root)


def _scripted(root: nn.Module) -> list[dict[str, Any]]:
    found = []
    for path, module in root.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim not in (3, 4, 5):
            continue
        call = _call(module)
        if call is None:
            reason = "a scripted module that calls no convolution; pass its state dict to read it"
            found.append({"name": path, "module": module, "not_depthwise": reason})
            continue
        stride, dilation, groups, transposed = call
        found.append(_fields(path, module, weight, stride, dilation, groups, transposed))
    return found


def _call(module: Any) -> tuple[list[int], list[int], int, bool] | None:
    """Read stride, dilation, groups and kind of the one convolution in a module's graph."""
    if all(hasattr(module, x) for x in ("stride", "dilation", "groups", "kernel_size")):
        transposed = bool(getattr(module, "transposed", False))
        return list(module.stride), list(module.dilation), module.groups, transposed
    try:
        nodes = list(module.inlined_graph.nodes())
    except (RuntimeError, AttributeError):
        return None
    for node in nodes:
        kind = node.kind()
        inputs = [_constant(value) for value in node.inputs()]
        if kind in ("aten::_convolution", "aten::convolution"):
            return inputs[3], inputs[5], inputs[8], inputs[6]
        if kind in ("aten::conv1d", "aten::conv2d", "aten::conv3d"):
            return inputs[3], inputs[5], inputs[6], False
    return None


def _constant(value: Any) -> Any:
    """Return a constant of a graph, or a list of them; None for what is computed."""
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return [x.toIValue() for x in node.inputs()]
    return value.toIValue()


def _exported(root: fx.GraphModule) -> list[dict[str, Any]]:
    found = []
    for node in root.graph.nodes:
        name = str(getattr(node.target, "__name__", "")).partition(".")[0]
        if node.op != "call_function" or name not in ATEN:
            continue
        source = node.args[1] if len(node.args) > 1 else None
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            reason = "its weight is computed in the program, and not stored as it is"
            found.append({"name": node.name, "module": root, "not_depthwise": reason})
            continue
        path = str(source.target)
        weight = attrgetter(path)(root)
        full = list(node.args) + [None] * 9
        given = dict(node.kwargs)
        at_dilation, at_groups = ATEN[name]
        stride = given.get("stride", full[3]) or [1, 1]
        dilation = given.get("dilation", full[at_dilation]) or [1, 1]
        groups = given.get("groups", full[at_groups]) or 1
        transposed = bool(full[6]) if at_groups == 8 else "transpose" in name
        layer = clean_name(path.removesuffix(".weight"))
        found.append(_fields(layer, root, weight, stride, dilation, groups, transposed))
    return found


def _fields(
    name: str,
    module: nn.Module,
    weight: Tensor,
    stride: Any,
    dilation: Any,
    groups: int,
    transposed: bool,
) -> dict[str, Any]:
    first, second, *kernel = weight.shape
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    each = inputs // groups
    return {
        "name": name,
        "module": module,
        "shape": ConvShape(tuple(kernel), inputs, outputs, each, transposed),
        "form": Held(weight),
        "stride": (stride[0], stride[-1]),
        "dilation": (dilation[0], dilation[-1]),
    }
