"""Writes ONNX files by PyTorch's exporter, with dynamic batch and image size if the model allows."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from ..errors import InputError
from ..files.quiet import quiet
from ..files.whole import whole_file
from . import region_pooling, suppression
from .graphs import Graph
from .integer_sizes import integer_sizes
from .joining import join
from .older_operators import OLDEST, with_opset

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MIN_TORCH = "2.8"
"""Oldest PyTorch known to work: the exporter of 2.6 fails at batch norms, 2.7 was not tried."""
FREE = ("batch", "size")
"""Dimensions of the images that can be dynamic in a file."""
OPSETS = range(18, 24)
"""Versions of ONNX's operators that PyTorch's exporter writes."""
MAX_FILE_BYTES = 2**31 - 2**20
"""A protobuf message is limited to 2 GiB; 1 MiB below it leaves room."""


@dataclass(frozen=True)
class Exported:
    """A written ONNX file.

    Attributes:
        path: the file.
        free: the dimensions of `FREE` that are dynamic in the file.
        notes: reasons why the other dimensions of `FREE` are fixed.
    """

    path: Path
    free: tuple[str, ...]
    notes: tuple[str, ...]


def check_packages() -> None:
    """Raises InputError if a package that exporting needs is not installed, or PyTorch is older than `MIN_TORCH`."""
    missing = missing_packages()
    if missing:
        raise InputError(f"exporting needs {', '.join(missing)}: pip install {shlex.join(missing)}")


def missing_packages() -> list[str]:
    """Names of packages to install before exporting: from `PACKAGES`, and PyTorch if it is older than `MIN_TORCH`."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return absent + [f"torch>={MIN_TORCH}"] * (torch.__version__ < MIN_TORCH)


def check_opset(opset: int | None) -> None:
    """Raises InputError if neither PyTorch's exporter nor onnx's converter writes this version of ONNX's operators."""
    if opset is not None and not OLDEST <= opset <= OPSETS[-1]:
        raise InputError(
            f"--opset must lie in [{OLDEST}, {OPSETS[-1]}] (PyTorch writes {OPSETS[0]} and later, onnx converts "
            f"to older ones), got {opset}"
        )


def export(
    graph: Graph,
    path: Path,
    size: Sequence[int],
    *,
    free: Sequence[str] = FREE,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
) -> Exported:
    """Writes a model to an ONNX file.

    Args:
        graph: the model, on the CPU, in evaluation mode.
        path: the file; written under a temporary name and renamed when it is complete.
        size: (height, width) of the images for tracing the model; if the size is not dynamic, the only size that the
            file accepts.
        free: dimensions of `FREE` to make dynamic if the model allows.
        metadata: {key: text} stored in the file.
        opset: one of `OPSETS`, or an older one from `OLDEST` on, to which the file is converted; PyTorch's default if
            None.

    Raises:
        InputError: the exporter or the converter fails on this model, a package is missing, or the file cannot be
            written.
    """
    check_packages()
    check_opset(opset)
    notes: list[str] = []
    problem = size_error(graph, other_size(size)) if "size" in free else ""
    if problem:
        notes.append(f"size cannot be left open: {problem}")
        free = [f for f in free if f != "size"]
    for attempt in dict.fromkeys([tuple(free), tuple(f for f in free if f != "size"), ()]):
        try:
            model = _export_graph(graph, size, attempt, max(opset, OPSETS[0]) if opset else None)
            break
        except Exception as error:  # any class: the model's code and the exporter raise their own errors
            notes.append(f"{' and '.join(attempt) or 'nothing'} cannot be left open: {reason(error)}")
    else:
        raise InputError(f"PyTorch's exporter cannot export this model: {last_reason(notes)}")
    _name_sides(model.graph)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    if opset and opset < OPSETS[0]:
        model = with_opset(model, opset, OPSETS[0])
    if model.ByteSize() > MAX_FILE_BYTES:
        raise InputError(
            f"the file would have {model.ByteSize() / 2**30:.1f} GiB; a single ONNX file is limited to 2 GiB"
        )
    with whole_file(path) as beside:
        beside.write_bytes(model.SerializeToString())
    return Exported(Path(path), attempt, tuple(notes))


def other_size(size: Sequence[int]) -> tuple[int, int]:
    """A second, larger (height, width), to check that a model and its file accept more than one size."""
    height, width = size
    return height + max(8, height // 8), width + max(8, width // 4)


def size_error(graph: Graph, size: Sequence[int]) -> str:
    """The error that a model raises for images of this (height, width), in one line; "" if it raises none.

    The test is a call of the model. Some networks check their input size, e.g. timm's vision transformers. The exporter
    drops such checks, so that the file would wrongly claim to accept any size.
    """
    try:
        with quiet(), torch.no_grad():
            graph.original(torch.zeros(1, len(graph.mean), *size))
    except Exception as error:  # any class: the model's code raises it
        return f"at {size[0]} x {size[1]} pixels, {reason(error)}"
    return ""


def write_fixed(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    """Writes a module with one input tensor to an ONNX file of fixed input shape; the input is named `images`.

    Args:
        module: any module that is called with one tensor.
        images: (N, C, H, W), an input of the shape that the file accepts.
        path: the file.

    Raises:
        InputError: the exporter fails on this module.
    """
    try:
        with quiet(), torch.no_grad(), integer_sizes():
            model = _program(module.eval(), (images,), ({},), ["images"], None)
    except Exception as error:  # any class: the model's code and the exporter raise their own errors
        raise InputError(f"PyTorch's exporter cannot export this model: {reason(error)}") from error
    path.write_bytes(model.SerializeToString())


def reason(error: Exception) -> str:
    """The line of an error's message that names its cause, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line and "Failed to" not in line]
    return (causes or lines or [type(error).__name__])[0][:200]


def last_reason(notes: Sequence[str]) -> str:
    """The reason in the last note."""
    return notes[-1].partition(": ")[2]


def _export_graph(graph: Graph, size: Sequence[int], free: Sequence[str], opset: int | None) -> Any:
    images = torch.rand(2 if "batch" in free else 1, len(graph.mean), *size) * 255
    batch = {0: Dim.DYNAMIC} if "batch" in free else {}
    sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if "size" in free else {}
    image_dims = batch | sides
    with quiet(), torch.no_grad(), integer_sizes():
        if graph.multiple == 1 or graph.square or not sides:
            return _program(graph, (images,), (image_dims,), ["images"], graph.outputs, opset)
        images = torch.rand(len(images), len(graph.mean), *traced_size(graph, size)) * 255
        x = graph.prepare(images)
        intermediate = graph.network(x, images)
        multiples = {i: graph.multiple * Dim(name, min=1, max=4096) for i, name in ((2, "rows"), (3, "columns"))}
        padded = [batch | multiples if graph.padded_outputs else batch for _ in intermediate]
        return join(
            _program(_Method(graph.prepare), (images,), (image_dims,), ["images"], ["x"], opset),
            _program(
                _Method(graph.network),
                (x, images),
                (batch | multiples, image_dims),
                ["x", "images"],
                graph.intermediate,
                opset,
            ),
            _program(
                _Method(graph.finish),
                (images, *intermediate),
                (image_dims, *padded),
                ["images", *graph.intermediate],
                graph.outputs,
                opset,
            ),
        )


def traced_size(graph: Graph, size: Sequence[int]) -> tuple[int, int]:
    """The (height, width) of the images for tracing a graph with dynamic size.

    Both are one pixel less than a multiple of `graph.multiple`, so that the traced code contains the padding. Both are
    so large that no feature map has a side of one position: the exporter would silently fix such a side to one.
    """
    smallest = (positions * graph.coarsest for positions in (2, 3))  # least height and width
    height, width = (-(-max(pair) // graph.multiple) * graph.multiple - 1 for pair in zip(size, smallest, strict=True))
    return height, width


def _name_sides(graph: Any) -> None:
    """Renames the dynamic dimensions of the images to "batch", "height" and "width", in inputs and outputs."""
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width")) if dims[i].dim_param}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    del graph.value_info[:]


class _Method(nn.Module):
    """Wraps one method of a graph as a module, with the graph's parameters."""

    def __init__(self, method: Any):
        super().__init__()
        self.model, self.name = method.__self__, method.__name__

    def forward(self, *inputs: torch.Tensor) -> Any:
        return getattr(self.model, self.name)(*inputs)


def _program(
    module: nn.Module,
    inputs: tuple,
    dims: tuple,
    names: Sequence[str],
    outputs: Sequence[str] | None,
    opset: int | None = None,
) -> Any:
    """Exports one module as a protobuf.

    Args:
        module: the module.
        inputs: input tensors for tracing.
        dims: {dimension: symbolic size} of each input; empty for a fixed shape.
        names: names of the inputs.
        outputs: names of the outputs; the exporter's choice if None.
        opset: see `export`.
    """
    shapes = (dims,) if isinstance(module, _Method) else dims  # `*inputs` of `_Method.forward` counts as one argument
    program = torch.export.export(module, inputs, dynamic_shapes=shapes if any(dims) else None, strict=False)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=suppression.translations() | region_pooling.translations(),
        input_names=list(names),
        output_names=list(outputs) if outputs else None,
        verbose=False,
        opset_version=opset,
    )
    assert exported is not None, "with dynamo=True the exporter returns a program"
    return exported.model_proto
