"""Rewrites an ONNX model with an older version of ONNX's operators than PyTorch's exporter writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..errors import InputError, one_line
from ..files.quiet import quiet

OLDEST = 13
"""Oldest version that is tried: before it, weights could not be quantised for each channel."""
SAME_FLOATS = 14
"""Version whose changes concern other types than floats and further attributes, but that the converter cannot undo for
every operator, e.g. for subtraction."""


def with_opset(model: Any, opset: int, written: int) -> Any:
    """Converts a model by ONNX's own version converter.

    The version of the file's format becomes the oldest that has these operators, because runtimes of that time refuse
    newer ones.

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
            older = version_converter.convert_version(model, max(opset, SAME_FLOATS))
            if opset < SAME_FLOATS:
                _relabel(older, opset)
            for node in older.graph.node:  # the converter leaves this attribute of version 18; 0 is what it was before
                _without(node, {"noop_with_empty_axes"})
            oldest = onnx.helper.find_min_ir_version_for(older.opset_import)
            older.ir_version = min(older.ir_version, max(oldest, 8) if older.functions else oldest)
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


def _relabel(model: Any, opset: int) -> None:
    """Gives a model the number of an older version whose operators do the same with floats.

    Attributes that the older version lacks are removed where they say nothing else than it does without them. The
    checker finds all others, and operators that it lacks.
    """
    from onnx import defs, numpy_helper

    for entry in model.opset_import:
        if not entry.domain:
            entry.version = opset
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                known[node.output[0]] = attribute.t
        if node.domain or not defs.has(node.op_type, opset, ""):
            continue
        names = defs.get_schema(node.op_type, opset, "").attributes
        shape = known.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and numpy_helper.to_array(shape).all():  # no 0, of which `allowzero` speaks
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                attribute.i = 0
        _without(node, {a.name for a in node.attribute} - set(names))


def _without(node: Any, names: Collection[str]) -> None:
    """Removes integer attributes of these names where they are 0."""
    for attribute in [a for a in node.attribute if a.name in names and a.type == a.INT and not a.i]:
        node.attribute.remove(attribute)
