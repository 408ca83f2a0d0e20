"""Joins ONNX models into one: each output is connected to the later inputs of the same name."""

from __future__ import annotations

from typing import Any


def join(*parts: Any) -> Any:
    """Joins models in sequence.

    Inputs and outputs keep their names; equal names connect the parts. All other values and nodes get a prefix per
    part, so that equal names in two parts do not collide.

    Args:
        parts: protobufs of models, in the order of execution; modified in place.

    Returns:
        A protobuf with the inputs of the first part and the outputs of the last part.

    Raises:
        ValueError: the parts have different opsets, or different functions of the same name.
    """
    import onnx

    versions: dict[str, int] = {}
    functions: dict[tuple[str, str], Any] = {}
    for part in parts:
        for entry in part.opset_import:
            if versions.setdefault(entry.domain, entry.version) != entry.version:
                raise ValueError(f"parts are of opset {versions[entry.domain]} and {entry.version} {entry.domain}")
        for function in part.functions:
            if functions.setdefault((function.domain, function.name), function) != function:
                raise ValueError(f"parts hold different functions {function.domain}.{function.name}")
    outer = {value.name for part in parts for value in (*part.graph.input, *part.graph.output)}
    nodes, initializers = [], []
    for number, part in enumerate(parts):
        _rename(part.graph, f"part{number}/", outer)
        nodes += part.graph.node
        initializers += part.graph.initializer
    first, last = parts[0].graph, parts[-1].graph
    graph = onnx.helper.make_graph(nodes, "joined", first.input, last.output, initializers)
    return onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()],
        functions=list(functions.values()),
        ir_version=max(part.ir_version for part in parts),
        producer_name=parts[0].producer_name,
        producer_version=parts[0].producer_version,
    )


def _rename(graph: Any, prefix: str, outer: set[str]) -> None:
    """Adds a prefix to the names of all nodes and of all values except `outer`, also inside branches and loops."""

    def named(name: str) -> str:
        return name if not name or name in outer else prefix + name

    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, prefix, outer)
                for value in (*inner.input, *inner.output):
                    value.name = named(value.name)
    for tensor in graph.initializer:
        tensor.name = named(tensor.name)
