"""Writes an ONNX file with 8-bit integers in place of floats, by onnxruntime's static quantisation.

Weights get a scale for each output channel, inputs and outputs of layers (activations) one for each tensor, from
the range of values that calibration images give. The file keeps ONNX's ordinary operators between pairs of
`QuantizeLinear` and `DequantizeLinear` (QDQ).

Only the network is quantised: convolutions and products with weights, and what lies between two of them. Normalisation
of images before the first layer, and what follows the last (decoding boxes, non-maximum suppression), stay as they are:
a box of 640 pixels in 256 steps would be off by more than a pixel.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, one_line
from ..files.quiet import quiet
from ..files.whole import whole_file

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input can be weights."""
BETWEEN = (
    "Add", "Mul", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Softmax", "MaxPool", "AveragePool", "GlobalAveragePool",
    "Concat", "Split", "Resize", "Pad", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice",
)  # fmt: skip
"""Operators that are quantised where they lie between two layers with weights."""
JOINING = ("Add", "Mul", "Concat", "MatMul")
"""Operators that read features from all inputs; the others from the first."""


def quantize(
    path: Path,
    target: Path,
    batches: Iterable[torch.Tensor],
    *,
    reduce_range: bool = False,
) -> tuple[int, int]:
    """Quantises an ONNX file that `sirfp.exporting.export` wrote.

    Args:
        path: the file with floats.
        target: the file to write.
        batches: images for calibration, each (N, C, H, W) of a size that the file accepts, values 0 to 255.
        reduce_range: True for weights of 7 bits. Processors of x86 without VNNI add products of 8 bits in 16, which
            overflows with weights of 8 bits.

    Returns:
        The number of layers with weights that were quantised, and the number of all such layers.

    Raises:
        InputError: the file has no layer with weights, or onnxruntime's quantiser fails on it.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            with quiet():
                quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
            for i, node in enumerate(model.graph.node):
                node.name = node.name or f"{node.op_type}_{i}"
            onnx.save(model, prepared)
            nodes = network_nodes(model.graph)
            layers = [node.name for node in model.graph.node if node.op_type in WEIGHTED and node.name in nodes]
            if not layers:
                raise InputError(f"{path} has no convolution and no product with weights, so that nothing is quantised")
            with quiet(), whole_file(target) as beside:
                quantization.quantize_static(
                    prepared,
                    beside,
                    _reader(batches),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=reduce_range,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    nodes_to_quantize=sorted(nodes),
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
        except InputError:
            raise
        except Exception as error:  # any class: the quantiser, onnx and onnxruntime raise their own errors
            raise InputError(f"onnxruntime cannot quantise this model: {one_line(error, 200)}") from error
    written = onnx.load(target)
    integer = {o for node in written.graph.node if node.op_type == "DequantizeLinear" for o in node.output}
    done = [node for node in written.graph.node if node.op_type in WEIGHTED and set(node.input[:2]) <= integer]
    return len(done), len(layers)


def network_nodes(graph: Any) -> set[str]:
    """Names of the nodes to quantise: layers with weights, and operators of `BETWEEN` that lie between two of them.

    "Between" means that operators of `BETWEEN` alone lead from a layer to the node, and from it to a layer. The
    residual stream of a transformer, which is read by norms, therefore stays as it is.

    Args:
        graph: the graph of an `onnx.ModelProto`, whose nodes have names.
    """
    weights = {tensor.name for tensor in graph.initializer}
    layers = {node.name for node in graph.node if node.op_type in WEIGHTED and set(node.input[:2]) & weights}
    after: set[str] = set()  # tensors to which operators of BETWEEN lead from a layer
    behind: set[str] = set()  # names of the nodes that make them
    for node in graph.node:  # in an order in which every node follows those that it reads
        if node.name in layers:
            after.update(node.output)
        elif node.op_type in BETWEEN and after.intersection(_features(node)):
            behind.add(node.name)
            after.update(node.output)
    before: set[str] = set()  # tensors from which operators of BETWEEN lead to a layer
    found = set(layers)
    for node in reversed(graph.node):
        ahead = node.op_type in BETWEEN and not before.isdisjoint(node.output)
        if node.name in layers or ahead:
            before.update(_features(node))
        if ahead and node.name in behind:
            found.add(node.name)
    return found


def _features(node: Any) -> Iterable[str]:
    """The inputs of a node that hold features."""
    return node.input if node.op_type in JOINING else node.input[:1]


def _reader(batches: Iterable[torch.Tensor]) -> Any:
    """Gives images to the quantiser."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.rest, None)
            return None if images is None else {"images": images.numpy()}

    return Reader()
