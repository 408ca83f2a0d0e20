"""NumPy arrays out of pickles, as Detectron2's model zoo has them, read without running anything.

Not even NumPy's own unpickling is let near a file: it believes what a dtype says of itself, so that bytes can pass for
pointers to objects. Here a pickle makes stand-ins that only note what they are told; an array is made of what they
noted once type, shape and number of bytes are known to agree.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

KINDS = "biufc"
"""Kinds of dtypes that are read: numbers."""
DEEPEST = 8
"""Containers in containers."""
BROKEN = (
    RuntimeError, EOFError, OSError, LookupError, TypeError, AttributeError, ValueError, ImportError, MemoryError,
    OverflowError, AssertionError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""What unpickling raises for a file that is cut short, altered, or not what it should be; PyTorch's and Python's."""


class _Type:
    """A dtype, from its name and byte order."""

    def __init__(self, name: Any, *_: Any):
        self.plain = np.dtype(_text(name))
        if self.plain.kind not in KINDS or self.plain.names or self.plain.subdtype or not self.plain.itemsize:
            raise pickle.UnpicklingError(f"it holds an array of {self.plain}")

    def __setstate__(self, state: tuple) -> None:
        self.plain = self.plain.newbyteorder(_text(state[1]))  # the rest is of structured types


class _Array:
    """An array whose state comes later, as `numpy.ndarray` is pickled."""

    content: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, raw = state
        self.content = _array(raw, kind, shape, "F" if fortran else "C")


class _Whole(_Array):
    """An array that is told all at once."""

    def __init__(self, content: np.ndarray):
        self.content = content


def _array(raw: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, _Type) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("it holds an array without a plain type and shape")
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))
    if math.prod(shape) * kind.plain.itemsize != len(raw):
        raise pickle.UnpicklingError(f"it holds {len(raw)} bytes for an array of shape {tuple(shape)}")
    return np.frombuffer(raw, kind.plain).reshape(shape, order=order).copy()  # that can be written to


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
        raise pickle.UnpicklingError("it makes bytes of something")
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
        if (module, name) == ("_codecs", "encode"):  # bytes of protocol 2
            return _encoded
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):  # none at all, of protocol 2
            return _no_bytes
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def read_arrays(path: Path) -> Any:
    """Reads a pickle of NumPy arrays in plain containers; runs nothing.

    Args:
        path: the file.

    Raises:
        InputError: it is broken or holds other objects.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Reader(file, encoding="latin1").load(), DEEPEST, {})
    except BROKEN as error:
        raise broken(path, error) from None


def broken(path: str | os.PathLike[str], error: BaseException) -> InputError:
    """What to say of a file of weights that cannot be read."""
    reason = " ".join(str(error).partition("\n")[0].split())[:160] or type(error).__name__
    return InputError(f"{path} cannot be read as weights ({reason}); copy or make it again")


def _plain(value: Any, deep: int, done: dict[int, Any]) -> Any:
    """The same with arrays in place of what stands for them; `done` is what was made of objects, by their id."""
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
