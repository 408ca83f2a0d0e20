"""Reads NumPy arrays from pickles, the format of Detectron2's model zoo, without running any code from the file.

NumPy's own unpickling is not safe either: NumPy trusts the dtype in the file, so bytes can be read as pointers to
objects. Here the pickle only creates stand-ins, objects that record their arguments. An array is built only after a
check that its type, shape and number of bytes match.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError

KINDS = "biufc"
"""NumPy's codes of the dtypes that are read: booleans, integers, real and complex numbers."""
DEEPEST = 8
"""The deepest nesting of containers that is read. Files of the model zoo nest only a few containers; deep nesting could
exceed Python's recursion limit."""
BROKEN = (
    RuntimeError, EOFError, OSError, LookupError, TypeError, AttributeError, ValueError, ImportError, MemoryError,
    OverflowError, AssertionError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""Errors that Python's or PyTorch's unpickling raises for a file that is truncated, altered or in another format."""


class _Type:
    """The stand-in of a dtype, built from its name and byte order."""

    def __init__(self, name: Any, *_: Any):
        self.plain = np.dtype(_text(name))
        if self.plain.kind not in KINDS or self.plain.names or self.plain.subdtype or not self.plain.itemsize:
            raise pickle.UnpicklingError(f"it holds an array of {self.plain}")

    def __setstate__(self, state: tuple) -> None:
        order: Any = _text(state[1])  # NumPy checks the byte order; the rest of the state is for structured types
        self.plain = self.plain.newbyteorder(order)


class _Array:
    """The stand-in of a pickled `numpy.ndarray`, which is created empty and then filled by `__setstate__`."""

    content: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        self.content = _array(raw, kind, shape, "F" if fortran else "C")


class _Whole(_Array):
    """The stand-in of a pickled scalar or buffer, which is created with its content."""

    def __init__(self, content: np.ndarray):
        self.content = content


def _array(raw: Any, kind: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    """Builds an array from its bytes, after a check that the number of bytes matches type and shape."""
    if not isinstance(kind, _Type) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("it holds an array without a plain type and shape")
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))
    if math.prod(shape) * kind.plain.itemsize != len(raw):
        raise pickle.UnpicklingError(f"it holds {len(raw)} bytes for an array of shape {tuple(shape)}")
    return np.frombuffer(raw, kind.plain).reshape(shape, order=order).copy()  # the copy is writable


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _scalar(kind: Any, raw: Any = b"") -> _Whole:
    return _Whole(_array(raw, kind, (), "C"))


def _of_buffer(buffer: Any, kind: Any, shape: Any, order: str = "C", *_: Any) -> _Whole:
    return _Whole(_array(buffer, kind, shape, "F" if order == "F" else "C"))


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding.lower() not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"it holds text in {encoding}")
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    if given:
        raise pickle.UnpicklingError("it creates bytes from other values")
    return b""


class _Reader(pickle.Unpickler):
    """An unpickler of plain containers and stand-ins for arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy":
            known = {
                "dtype": _Type,
                "ndarray": _Array,
                "_reconstruct": lambda *_: _Array(),
                "scalar": _scalar,
                "_frombuffer": _of_buffer,
            }
            if name in known:
                return known[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):  # bytes in pickle protocol 2
            return _encoded
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):  # empty bytes in pickle protocol 2
            return _no_bytes
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def read_arrays(path: Path) -> Any:
    """Reads a pickle of NumPy arrays in plain containers, without running any code from it.

    Args:
        path: the file.

    Returns:
        Nested dicts and lists of texts, numbers and arrays; tuples become lists.

    Raises:
        InputError: the file is damaged or holds other objects.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Reader(file, encoding="latin1").load(), DEEPEST, {})
    except BROKEN as error:
        raise broken(path, error) from None


def broken(path: str | os.PathLike[str], error: BaseException) -> InputError:
    """Returns the InputError for a file of weights that cannot be read, with the reason in one line."""
    reason = " ".join(str(error).partition("\n")[0].split())[:160] or type(error).__name__
    return InputError(f"{path} cannot be read as weights ({reason}); copy or create the file again")


def _plain(value: Any, deep: int, done: dict[int, Any]) -> Any:
    """Replaces stand-ins by their arrays.

    Args:
        value: an unpickled object.
        deep: number of further levels of containers that are allowed.
        done: {id of a container: its replacement}, so that a container that occurs twice is replaced only once.

    Raises:
        pickle.UnpicklingError: an array has no content, an object is of another type, or nesting is too deep.
    """
    if isinstance(value, _Array):
        if value.content is None:
            raise pickle.UnpicklingError("it holds an array without content")
        return value.content
    if isinstance(value, (str, bytes, int, float, complex, type(None))):
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    if deep == 0:
        raise pickle.UnpicklingError(f"it nests more than {DEEPEST} containers")
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(part, deep - 1, done) for key, part in value.items()}
        else:
            done[id(value)] = [_plain(part, deep - 1, done) for part in value]
    return done[id(value)]
