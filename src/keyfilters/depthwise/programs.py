"""Convolutions of scripted, traced and exported programs, whose modules are no `nn.Conv2d`."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from keyfilters.depthwise.forms import Held
from keyfilters.depthwise.shapes import ConvShape
from keyfilters.passes import clean_name

__all__ = ["exported_kernels", "scripted_kernels"]

NOT_ONE = "its kernel is no tensor called weight; read the module that it was made from"
# Where dilation and groups stand among the arguments; the stride is always the fourth.
ATEN = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (5, 6)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (7, 6)),
    **dict.fromkeys(("convolution", "_convolution"), (5, 8)),
}


def scripted_kernels(root: nn.Module) -> list[dict[str, Any]]:
    """Return the fields of `Kernel` of every convolution of a scripted module."""
    found = []
    for path, module in root.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim not in (3, 4, 5):
            held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if any(x.ndim in (3, 4, 5) for x in held):
                found.append({"name": path, "module": module, "not_depthwise": NOT_ONE})
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


def exported_kernels(root: fx.GraphModule) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield what convolves in a graph, in its order: the modules that it calls, and functions.

    Yields:
        The name of a module, and None; or the name of a convolution that is called as a function,
        and the fields of its `Kernel`. A kernel that serves twice comes once.
    """
    seen: set[str] = set()
    for node in root.graph.nodes:
        name = str(getattr(node.target, "__name__", "")).partition(".")[0]
        if node.op == "call_module":
            yield clean_name(str(node.target)), None
        if node.op != "call_function" or name not in ATEN:
            continue
        source = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            reason = "its weight is computed in the program, and not stored as it is"
            yield node.name, {"name": node.name, "module": root, "not_depthwise": reason}
            continue
        path = str(source.target)
        if path not in seen:
            seen.add(path)
            fields = _called(root, node, name, path)
            yield fields["name"], fields


def _called(root: fx.GraphModule, node: fx.Node, name: str, path: str) -> dict[str, Any]:
    """Return the fields of `Kernel` of a convolution that a graph calls with a stored weight."""
    full, given = list(node.args) + [None] * 9, dict(node.kwargs)
    at_dilation, at_groups = ATEN[name]
    stride = given.get("stride", full[3]) or 1
    dilation = given.get("dilation", full[at_dilation]) or 1
    groups: Any = given.get("groups", full[at_groups]) or 1
    transposed = bool(full[6]) if at_groups == 8 else "transpose" in name
    layer, reason = clean_name(path.removesuffix(".weight")), ""
    if path in dict(root.named_buffers()):
        reason = f"{path} is a buffer, not trained"
    elif any(isinstance(x, fx.Node) for x in (*_listed(stride), *_listed(dilation), groups)):
        reason = "its stride, dilation or groups are computed in the program"
    if reason:
        return {"name": layer, "module": root, "not_depthwise": reason}
    weight, numbers = attrgetter(path)(root), (_listed(stride), _listed(dilation))
    return _fields(layer, root, weight, *numbers, groups, transposed)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


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
