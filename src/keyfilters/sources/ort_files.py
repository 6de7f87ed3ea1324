"""Reading ``.ort`` files: ONNX graphs that onnxruntime stored as a flatbuffer."""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

from keyfilters.bank import FilterBank
from keyfilters.sources.collect import Collector
from keyfilters.sources.content import mapped
from keyfilters.sources.flat import Table, root
from keyfilters.sources.onnx_constants import Scope
from keyfilters.sources.onnx_files import _read_graph

__all__ = ["read_ort"]

DEEPEST = 20
MOST = 100_000  # operators and constants
USED_AGAIN = 2**20  # bytes that the parts of a graph may have beyond twice the file's


def read_ort(path: Path, model: str) -> FilterBank:
    """Read the depthwise filters of an ``.ort`` file, in graph order, as of an ONNX file."""
    data = mapped(path)
    session = root(data)
    held = session.table(1)
    graph = held.table(7) if held is not None else None
    if held is None or graph is None:
        raise ValueError("it holds no graph")
    opsets = {x.text(0): x.number(1, "<q") for x in held.tables(1)}
    opsets = {"" if name == "ai.onnx" else name: number for name, number in opsets.items()}
    collector = Collector(model)
    _read_graph(
        Scope(_graph(graph, 0, [MOST, USED_AGAIN + 2 * len(data)]), path, opsets), collector
    )
    return collector.bank()


def _graph(table: Table, level: int, left: list[int]) -> Any:
    """Return a graph as a GraphProto with the operators, their constants and the inputs."""
    from onnx import GraphProto

    if level > DEEPEST:
        raise ValueError("graphs lie in each other too deep")
    graph = GraphProto(name="ort")
    nodes, constants = table.tables(2), table.tables(0)
    left[0] -= len(nodes) + len(constants)
    if left[0] < 0:
        raise ValueError(f"more than {MOST} operators and constants")
    graph.initializer.extend(_tensor(x, left) for x in constants)
    for sparse in table.tables(7):  # their names alone: they are not read
        if (values := sparse.table(0)) is not None:
            graph.sparse_initializer.add().values.name = values.text(0)
    for name in table.texts(5):
        graph.input.add(name=name)
    for node in _in_order(nodes):
        made = graph.node.add(name=node.text(0), domain=node.text(2), op_type=node.text(5))
        made.input.extend(node.texts(8))
        made.output.extend(node.texts(9))
        for attribute in node.tables(10):
            _attribute(made.attribute.add(name=attribute.text(0)), attribute, level, left)
    return graph


def _in_order(nodes: list[Table]) -> list[Table]:
    """Return operators in an order in which they can be run, the first stored first."""
    nodes = sorted(nodes, key=lambda x: x.number(4, "<I"))
    makers = {name: i for i, node in enumerate(nodes) for name in node.texts(9) if name}
    needs = [{makers[x] for x in node.texts(8) if x in makers} for node in nodes]
    users: dict[int, list[int]] = {}
    for i, need in enumerate(needs):
        for maker in need:
            users.setdefault(maker, []).append(i)
    ready = [i for i, need in enumerate(needs) if not need]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(one := heapq.heappop(ready))
        for user in users.get(one, []):
            needs[user].discard(one)
            if not needs[user]:
                heapq.heappush(ready, user)
    if len(order) != len(nodes):
        raise ValueError("operators make each other's inputs")
    return [nodes[i] for i in order]


def _attribute(made: Any, table: Table, level: int, left: list[int]) -> None:
    kind = table.number(2, "<i")
    _spend(left, 16)
    made.type = kind if 0 <= kind <= 14 else 0
    if kind == 1:
        made.f = table.float(3)
    elif kind == 2:
        made.i = table.number(4, "<q")
    elif kind == 3:
        made.s = table.text(5).encode()
        _spend(left, len(made.s))
    elif kind == 4 and (tensor := table.table(6)) is not None:
        made.t.CopyFrom(_tensor(tensor, left))
    elif kind == 5 and (graph := table.table(7)) is not None:
        made.g.CopyFrom(_graph(graph, level + 1, left))
    elif kind == 6:
        floats = table.array(8, "<f4")
        _spend(left, floats.nbytes)
        made.floats.extend(float(x) for x in floats)
    elif kind == 7:
        ints = table.array(9, "<i8")
        _spend(left, ints.nbytes)
        made.ints.extend(int(x) for x in ints)


def _spend(left: list[int], size: int) -> None:
    """Count bytes that are copied, since many parts of a file may be one and the same."""
    left[1] -= size
    if left[1] < 0:
        raise ValueError("its parts are far larger than the file: they are used again and again")


def _tensor(table: Table, left: list[int]) -> Any:
    from onnx import TensorProto

    _spend(left, table.array(4, "u1").nbytes + table.array(2, "<i8").nbytes)
    made = TensorProto(name=table.text(0), data_type=table.number(3, "<i"))
    made.dims.extend(table.numbers(2, "<i8"))
    if table.number(6, "<q", -1) >= 0 and not table.array(4, "u1").size:
        made.data_location = TensorProto.EXTERNAL
    made.raw_data = table.array(4, "u1").tobytes()
    return made
