"""Exports models as ONNX files: the input is raw images, the output is the final outputs, e.g. boxes after NMS.

Batch and image size are dynamic if the model allows.

    graph = build_graph(source, pruned)
    file = export(graph, "small.onnx", (480, 640))
    agreement(graph, "small.onnx", [images]).relative
"""

from .agreement import Agreement, Session, agreement
from .clock import OnnxRuntimeClock
from .families import build_graph
from .graphs import Graph
from .writing import Exported, check_opset, check_packages, export, missing_packages, other_size, write_fixed

__all__ = [
    "Agreement",
    "Exported",
    "Graph",
    "OnnxRuntimeClock",
    "Session",
    "agreement",
    "build_graph",
    "check_opset",
    "check_packages",
    "export",
    "missing_packages",
    "other_size",
    "write_fixed",
]
