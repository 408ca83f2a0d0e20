"""Writing ONNX files by PyTorch's exporter, with batch and size of the images left open where the model allows."""

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
from .joining import join
from .whole_sizes import whole_sizes

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OLDEST = "2.8"  # PyTorch; the exporter of 2.6 stops at batch norms
FREE = ("batch", "size")
OPSETS = range(18, 24)  # that PyTorch's exporter writes
LARGEST = 2**31 - 2**20  # bytes; a protobuf file ends at 2 GiB


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: its name.
        free: which of `FREE` were left open.
        notes: why others were not.
    """

    path: Path
    free: tuple[str, ...]
    notes: tuple[str, ...]


def check_packages() -> None:
    """Raises InputError where a package that exporting needs is not installed, or PyTorch is too old for it."""
    if lacking():
        raise InputError(f"exporting needs {', '.join(lacking())}: pip install {shlex.join(lacking())}")


def lacking() -> list[str]:
    """Those of `PACKAGES` that are not installed, and PyTorch where it is older than `OLDEST`."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return absent + [f"torch>={OLDEST}"] * (torch.__version__ < OLDEST)


def check_opset(opset: int | None) -> None:
    """Raises InputError where PyTorch's exporter does not write ONNX's operators of a version."""
    if opset is not None and opset not in OPSETS:
        raise InputError(f"--opset must lie in [{OPSETS[0]}, {OPSETS[-1]}], which PyTorch writes, got {opset}")


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
        graph: the model, on the processor, in evaluation mode.
        path: the file, written beside and renamed.
        size: (height, width) of the images that are sent through it, and of all where the size is not free.
        free: what to leave open if the model allows, of `FREE`.
        metadata: texts to keep in the file.
        opset: of `OPSETS`; what PyTorch has as its default by default.

    Raises:
        InputError: the exporter cannot do it, a package is not installed, or the file cannot be written.
    """
    check_packages()
    check_opset(opset)
    notes: list[str] = []
    refused = refusal(graph, other_size(size)) if "size" in free else ""
    if refused:
        notes.append(f"size cannot be left open: {refused}")
        free = [f for f in free if f != "size"]
    for some in dict.fromkeys([tuple(free), tuple(f for f in free if f != "size"), ()]):
        try:
            model = _exported(graph, size, some, opset)
            break
        except Exception as error:  # whatever the model's code or the exporter raises
            notes.append(f"{' and '.join(some) or 'nothing'} cannot be left open: {reason(error)}")
    else:
        raise InputError(f"the exporter cannot do this model: {reason_of(notes)}")
    _name_sides(model.graph)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    if model.ByteSize() > LARGEST:
        raise InputError(
            f"the file would have {model.ByteSize() / 2**30:.1f} GiB; an ONNX file of one part ends at 2 GiB"
        )
    with whole_file(path) as beside:
        beside.write_bytes(model.SerializeToString())
    return Exported(Path(path), some, tuple(notes))


def other_size(size: Sequence[int]) -> tuple[int, int]:
    """A (height, width) that differs from one, for trying what is left open."""
    height, width = size
    return height + max(8, height // 8), width + max(8, width // 4)


def refusal(graph: Graph, size: Sequence[int]) -> str:
    """What a model says to images (height, width), in one line; nothing where it takes them.

    The exporter cannot tell: a network's own check of its sizes, such as that of timm's vision transformers, is left
    out of the file, which then says that it takes any size.
    """
    try:
        with quiet(), torch.no_grad():
            graph.original(torch.zeros(1, len(graph.mean), *size))
    except Exception as error:  # whatever the model's code raises
        return f"at {size[0]} x {size[1]} pixels, {reason(error)}"
    return ""


def write_fixed(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    """Writes any module that is called with one tensor for just such a tensor; the input is called `images`.

    Raises:
        InputError: the exporter cannot do it.
    """
    try:
        with quiet(), torch.no_grad(), whole_sizes():
            model = _program(module.eval(), (images,), ({},), ["images"], None)
    except Exception as error:  # whatever the model's code or the exporter raises
        raise InputError(f"the exporter cannot do this model: {reason(error)}") from error
    path.write_bytes(model.SerializeToString())


def reason(error: Exception) -> str:
    """The first line that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line and "Failed to" not in line]
    return (causes or lines or [type(error).__name__])[0][:200]


def reason_of(notes: Sequence[str]) -> str:
    """What the last attempt said."""
    return notes[-1].partition(": ")[2]


def _exported(graph: Graph, size: Sequence[int], free: Sequence[str], opset: int | None) -> Any:
    images = torch.rand(2 if "batch" in free else 1, len(graph.mean), *size) * 255
    batch = {0: Dim.DYNAMIC} if "batch" in free else {}
    sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if "size" in free else {}
    image_dims = batch | sides
    with quiet(), torch.no_grad(), whole_sizes():
        if graph.multiple == 1 or graph.square or not sides:
            return _program(graph, (images,), (image_dims,), ["images"], graph.outputs, opset)
        images = torch.rand(len(images), len(graph.mean), *traced_size(graph, size)) * 255
        x = graph.prepare(images)
        between = graph.network(x, images)
        multiples = {i: graph.multiple * Dim(name, min=1, max=4096) for i, name in ((2, "rows"), (3, "columns"))}
        padded = [batch | multiples if graph.padded_outputs else batch for _ in between]
        return join(
            _program(_Part(graph.prepare), (images,), (image_dims,), ["images"], ["x"], opset),
            _program(
                _Part(graph.network),
                (x, images),
                (batch | multiples, image_dims),
                ["x", "images"],
                graph.between,
                opset,
            ),
            _program(
                _Part(graph.finish),
                (images, *between),
                (image_dims, *padded),
                ["images", *graph.between],
                graph.outputs,
                opset,
            ),
        )


def traced_size(graph: Graph, size: Sequence[int]) -> tuple[int, int]:
    """The (height, width) to send through a graph whose images may then have any.

    One pixel short of a multiple, so that padding is not left out; and no feature map has a side of one, since the
    exporter takes that for a side that is always one, without a word.
    """
    least = (least * graph.coarsest for least in (2, 3))
    height, width = (-(-max(pair) // graph.multiple) * graph.multiple - 1 for pair in zip(size, least, strict=True))
    return height, width


def _name_sides(graph: Any) -> None:
    """Calls the open sides of the images batch, height and width, also in the outputs."""
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width")) if dims[i].dim_param}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    del graph.value_info[:]


class _Part(nn.Module):
    """One method of a graph as a module."""

    def __init__(self, work):
        super().__init__()
        self.model, self.name = work.__self__, work.__name__

    def forward(self, *inputs: torch.Tensor):
        return getattr(self.model, self.name)(*inputs)


def _program(
    module: nn.Module,
    inputs: tuple,
    dims: tuple,
    names: Sequence[str],
    outputs: Sequence[str] | None,
    opset: int | None = None,
) -> Any:
    """One exported module as a protobuf."""
    shapes = (dims,) if isinstance(module, _Part) else dims  # *inputs are one argument
    program = torch.export.export(module, inputs, dynamic_shapes=shapes if any(dims) else None, strict=False)
    written = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=suppression.translations() | region_pooling.translations(),
        input_names=list(names),
        output_names=list(outputs) if outputs else None,
        verbose=False,
        **({"opset_version": opset} if opset else {}),
    )
    return written.model_proto
