"""Joining ONNX models whose inputs and outputs have the same names into one."""

from __future__ import annotations

from typing import Any


def join(*parts: Any) -> Any:
    """One model of several: what one gives by a name, those after it take by that name.

    Args:
        parts: protobufs of models, in order; all that they call by the name of an input or output is the same thing.

    Returns:
        A protobuf with the first's inputs and the last's outputs; the parts are changed.

    Raises:
        ValueError: they are of different opsets, or hold different functions of the same name.
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
    """Puts a prefix before the names of all values and nodes but the outer ones, also in branches and loops."""

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
