"""Local functions of ONNX models, put in place of their calls."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from keyfilters.sources.onnx_constants import Proto, damaged, subgraphs

__all__ = ["inlined"]

MOST_NODES = 1_000_000  # of a model whose functions are inlined; large models have some 10,000
Key = tuple[str, str, str]


def inlined(proto: Proto, path: Path) -> Proto:
    """Return a model whose calls of local functions are replaced by their nodes.

    The library inlines without a bound: functions that call themselves end the process in versions
    before 1.22, and a few that call each other twice fill the memory in all. So both are looked for
    first.

    Raises:
        SourceError: a function calls itself, the nodes are too many, or inlining fails.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    if not proto.functions:
        return proto
    calls = {_key(x.domain, x.name, x): list(_calls(x.node)) for x in proto.functions}
    order = TopologicalSorter({key: set(found) & set(calls) for key, found in calls.items()})
    sizes: dict[Key, int] = {}
    try:
        for key in order.static_order():
            sizes[key] = sum(sizes.get(called, 1) for called in calls[key])
    except CycleError as error:
        name = error.args[1][0][1]
        raise damaged(
            path, f"has functions that cannot be inlined ({name!r} calls itself)"
        ) from error
    total = sum(sizes.get(called, 1) for called in _calls(proto.graph.node))
    if total > MOST_NODES:
        raise damaged(path, f"has functions that cannot be inlined (to {total:,} nodes)")
    try:
        return inline_local_functions(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise damaged(path, f"has functions that cannot be inlined ({error})") from error


def _calls(nodes: Proto) -> Iterator[Key]:
    """Yield the operator of every node, those of its subgraphs as well."""
    for node in nodes:
        yield _key(node.domain, node.op_type, node)
        for graph in subgraphs(node):
            yield from _calls(graph.node)


def _key(domain: str, name: str, holder: Proto) -> Key:
    return ("" if domain == "ai.onnx" else domain, name, getattr(holder, "overload", ""))
