"""Rules for Fourier transforms and complex numbers."""

from __future__ import annotations

from .pointwise import pointwise
from .table import rule


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transform(trace, func, args, kwargs, out) -> None:
    """Keeps the labels of the dimensions that are not transformed."""
    dims = list(trace.dims(args[0]))
    for axis in args[1]:
        trace.labels.freeze(dims[axis], "a Fourier transform runs over it")
        dims[axis] = None
    trace.set(out, dims)


@rule("complex", "polar", "_conj", "conj_physical", "resolve_conj", "_neg_view")
def complex_numbers(trace, func, args, kwargs, out) -> None:
    pointwise(trace, func, args, kwargs, out)


@rule("view_as_real")
def view_as_real(trace, func, args, kwargs, out) -> None:
    """(...) of complex -> (..., 2)."""
    trace.set(out, [*trace.dims(args[0]), None])


@rule("view_as_complex")
def view_as_complex(trace, func, args, kwargs, out) -> None:
    """(..., 2) -> (...) of complex."""
    dims = trace.dims(args[0])
    trace.labels.freeze(dims[-1], "it holds real and imaginary parts")
    trace.set(out, dims[:-1])
