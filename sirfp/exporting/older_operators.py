"""Rewrites an ONNX model with an older version of ONNX's operators than PyTorch's exporter writes."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, one_line
from ..files.quiet import quiet

OLDEST = 13
"""Oldest version that is tried: before it, weights could not be quantised for each channel."""


def with_opset(model: Any, opset: int, written: int) -> Any:
    """Converts a model by ONNX's own version converter.

    Args:
        model: an `onnx.ModelProto`.
        opset: the version of ONNX's operators to convert to.
        written: the oldest version that PyTorch writes, for the message.

    Returns:
        The converted model.

    Raises:
        InputError: an operator of the model has no counterpart in the older version that the converter knows.
    """
    import onnx
    from onnx import version_converter

    try:
        with quiet():
            older = version_converter.convert_version(model, opset)
            for node in older.graph.node:  # the converter leaves this attribute of version 18; 0 is what it was before
                for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
                    node.attribute.remove(attribute)
            onnx.checker.check_model(older)
    except Exception as error:  # any class: the converter raises RuntimeError, the checker its own error
        raise InputError(
            f"onnx's converter cannot write this model with --opset {opset} ({one_line(error, 160)}); "
            f"--opset {written} is the oldest that PyTorch writes itself"
        ) from error
    for prop in model.metadata_props:
        if prop.key not in {kept.key for kept in older.metadata_props}:
            older.metadata_props.add(key=prop.key, value=prop.value)
    return older
