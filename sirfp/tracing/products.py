"""Rules for convolutions, matrix products and attention: tie the two dimensions that a product sums over."""

from __future__ import annotations

from math import isclose, prod

import numpy as np
import torch

from .channel_labels import Tap
from .emissions import is_flat, product, spread, variance_of
from .table import HIGHER_ORDER, rule
from .taps import axes_of, means_under_taps, shares


@rule("convolution", "_convolution", "convolution_overrideable", counted=("convolution",))
def convolution(trace, func, args, kwargs, out) -> None:
    """Ties x's channels to the weight's second dimension. The weight's first dimension labels the output.

    In a transposed convolution the weight's two dimensions are swapped. With groups, a cut removes the same index from
    each group; for a depthwise convolution see `_depthwise`.
    """
    x, weight, bias, _, _, _, transposed, _, groups = args[:9]
    labels = trace.labels
    if groups == 1:
        trace.fit_made(x, 1, trace.dim(weight, 0 if transposed else 1))  # a first hidden state of zeros
    x_dims, w_dims = trace.dims(x), trace.dims(weight)
    for dim in (*x_dims[2:], *w_dims[2:]):
        labels.freeze(dim, "it is a spatial dimension of a convolution")
    x_in = x_dims[1]
    reason = "a convolution ties it to an input of fixed size"
    depthwise = groups > 1 and x.shape[1] == groups
    if depthwise:
        result = _depthwise(trace, x_in, weight, out.shape[1] // groups, transposed, reason)
    elif transposed:
        labels.tie(x_in, w_dims[0], reason)
        labels.tie_rows(w_dims[0], groups)
        result = w_dims[1] if w_dims[1] is None else np.tile(w_dims[1], groups)
    else:
        labels.tie(labels.tie_rows(x_in, groups), w_dims[1], reason)
        result = w_dims[0]
        labels.tie_rows(result, groups)
    if bias is not None:
        labels.tie(result, trace.dim(bias, 0), reason)
    trace.set(out, [x_dims[0], result] + [None] * (out.dim() - 2))

    count_convolution(trace, x, weight, prod(x.shape[2:] if transposed else out.shape[2:]))
    owned = [t for t in (weight, bias) if trace.is_state(t)]  # a computed weight (standardised) names no module
    if result is not None and owned:
        trace.taps.append(Tap(owned[0], result, norm=False, dim=1))
    if transposed:
        return
    means = _emitted_under_taps(trace, args, out)
    if x_in is not None and not depthwise and trace.is_state(weight):
        trace.reads(out, weight, x_in, means, groups)
    if means is not None and not bool(means.isnan().any()):
        _emit_convolution(trace, args, out, groups, means)


def _depthwise(trace, x_in, weight, multiplier: int, transposed: bool, reason: str):
    """Ties the channels of a depthwise convolution, of which each input makes `multiplier` outputs.

    An input goes with all of its outputs. Where the inputs have a fixed number, as the bands of a signal or the colours
    of an image, the same index goes from the outputs of each.

    Returns:
        Labels of the outputs, None if their number is fixed.
    """
    labels, w_dims = trace.labels, trace.dims(weight)
    if multiplier == 1 or not transposed:
        repeated, own = None if x_in is None else np.repeat(x_in, multiplier), w_dims[0]
        if own is None and weight.stride(0) == 0:
            own = repeated  # one kernel, expanded to all channels: the code gives their number
            trace.note_broadcast(weight, 0, repeated)
        if x_in is None and multiplier > 1:
            labels.tie_rows(own, weight.shape[0] // multiplier)
        else:
            labels.tie(repeated, own, reason)
        return own
    labels.tie(x_in, w_dims[0], reason)
    if x_in is not None:
        labels.freeze(x_in, "a transposed depthwise convolution with a multiplier")
        labels.freeze(w_dims[1], "a transposed depthwise convolution with a multiplier")
    return None if w_dims[1] is None else np.tile(w_dims[1], weight.shape[0])


def _emit_convolution(trace, args, out, groups: int, means: torch.Tensor) -> None:
    """Notes what the channels that a convolution makes emit; `means` is what each tap reads of each channel."""
    x, weight, bias, stride, padding, dilation = args[:6]
    known = trace.emitted(x, maps=True)
    flat = is_flat(known[1], 1) and out[0, 0].numel() > 1  # a gate reads means over all positions
    axes = axes_of(x.shape[2:], out.shape[2:], weight.shape[2:], stride, padding, dilation)
    dims, name = out.dim(), trace.name(weight) or ""

    def values() -> tuple[int, torch.Tensor]:
        each = variance_of(known[1], 1)[:, None] if flat else None
        variances = None if each is None else each * shares(axes).to(each)
        mean, deviation = product(weight, bias, means, variances, groups)
        return 1, spread(mean, deviation, 1, dims, name)

    trace.emit_later(out, values)


def _emitted_under_taps(trace, args, out) -> torch.Tensor | None:
    """Returns the mean of what each tap reads of each channel, (I, taps), None if unknown."""
    x, weight, _, stride, padding, dilation = args[:6]
    flat, maps = trace.emitted(x), trace.emitted(x, maps=True)
    if maps is None or maps[0] != 1:
        return None
    values = trace.emitted_maps(x)[1][0] if flat is None else flat[1]
    axes = axes_of(x.shape[2:], out.shape[2:], weight.shape[2:], stride, padding, dilation)
    return means_under_taps(values, axes)


def count_convolution(trace, x, weight, positions: int) -> None:
    """Counts the multiply-adds of a kernel that is applied at `positions` positions of each image."""
    images, sides = trace.dim(x, 0), [dim for dim in trace.dims(weight)[:2] if dim is not None]
    fixed = prod(weight.shape) / prod(len(side) for side in sides)
    trace.count("conv", fixed * positions * (1 if images is not None else x.shape[0]), images, *sides)


@rule("addmm", counted=True)
def addmm(trace, func, args, kwargs, out) -> None:
    """Follows a linear layer with bias, (n, k) x (k, m) + (m,)."""
    _matrix_product(trace, args[1], args[2], out, "addmm", args[0] if args[0].dim() == 1 else None)
    _add_bias(trace, args[0], out)


@rule("mm", counted=True)
def mm(trace, func, args, kwargs, out) -> None:
    _matrix_product(trace, args[0], args[1], out, "matmul")


@rule("linear")
def linear(trace, func, args, kwargs, out) -> None:
    """Follows (..., k) x (m, k)^T + (m,), if PyTorch does not decompose it into `addmm`."""
    x, weight = args[0], args[1]
    dims, (w_out, w_in) = trace.dims(x), trace.dims(weight)
    inner = trace.labels.tie(dims[-1], w_in, "a linear layer ties it to an input of fixed size")
    trace.set(out, [*dims[:-1], w_out])
    _count_product(
        trace, "linear", [*zip(dims[:-1], x.shape[:-1], strict=True), (inner, x.shape[-1]), (w_out, out.shape[-1])]
    )
    _linear_tap(trace, weight, w_out, out, x, args[2] if len(args) > 2 else None)
    if len(args) > 2 and args[2] is not None:
        _add_bias(trace, args[2], out)


@rule("bmm", counted=True)
def bmm(trace, func, args, kwargs, out) -> None:
    """Follows (b, n, k) x (b, k, m); the batch dimension b may hold attention heads."""
    _batched(trace, args[0], args[1], out)


@rule("baddbmm", "baddbmm_", counted=("baddbmm",))
def baddbmm(trace, func, args, kwargs, out) -> None:
    _batched(trace, args[1], args[2], out)
    _add_bias(trace, args[0], out)


@rule("_trilinear")
def trilinear(trace, func, args, kwargs, out) -> None:
    """Follows `nn.Bilinear`, a product of three tensors that lack some dimensions and are summed over others."""
    absent, summed = args[3:6], args[6]
    sides: list = []
    for axis in range(args[0].dim() + len(absent[0])):
        parts = zip(args[:3], absent, strict=True)
        own = [(tensor, axis - sum(a < axis for a in gone)) for tensor, gone in parts if axis not in gone]
        labels = trace.dim(*own[0])
        for tensor, place in own[1:]:
            labels = trace.labels.tie(labels, trace.dim(tensor, place), "a product ties it to an input of fixed size")
        sides.append((labels, own[0][0].shape[own[0][1]]))
    trace.set(out, [labels for axis, (labels, _) in enumerate(sides) if axis not in summed])
    _count_product(trace, "bilinear", sides)
    if trace.is_state(args[1]) and trace.dim(args[1], 0) is not None:
        trace.taps.append(Tap(args[1], trace.dim(args[1], 0), norm=False, dim=-1))


@rule("_euclidean_dist", "_cdist_forward")
def distances(trace, func, args, kwargs, out) -> None:
    """(..., n, k) and (..., m, k) -> (..., n, m): ties the dimension that distances sum over."""
    a, b = trace.dims(args[0]), trace.dims(args[1])
    trace.labels.tie(a[-1], b[-1], "a distance ties it to an input of fixed size")
    reason = "a distance joins it with a fixed size"
    count = max(len(a), len(b))  # the tensors may be broadcast
    a, b = ([None] * (count - len(dims)) + list(dims) for dims in (a, b))
    outer = [trace.labels.tie(x, y, reason) for x, y in zip(a[:-2], b[:-2], strict=True)]
    trace.set(out, [*outer, a[-2], b[-2]])


@rule("mv", "dot", "vdot")
def matrix_vector(trace, func, args, kwargs, out) -> None:
    a, b = args
    inner = trace.labels.tie(trace.dim(a, -1), trace.dim(b, 0), "a product ties it to an input of fixed size")
    outer = trace.dims(a)[:-1]
    trace.set(out, outer)
    _count_product(trace, "matmul", [*zip(outer, a.shape[:-1], strict=True), (inner, a.shape[-1])])


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
)  # fmt: skip
def attention(trace, func, args, kwargs, out) -> None:
    """Follows softmax(q k^T) v over (b, heads, n, d).

    Ties the width d of q to the width of k, and the heads of q, k, v and of a mask. In grouped attention, which has
    fewer heads of k and v, each of these is tied to all heads of q that share it. The output has the heads of q and the
    width of v.
    """
    query, key, value = args[:3]
    q, k, v = trace.dims(query), trace.dims(key), trace.dims(value)
    labels = trace.labels
    width = labels.tie(q[-1], k[-1], "attention joins it with a fixed size")
    if kwargs.get("scale") is None:
        labels.freeze(width, "attention's scale follows the head width")
    heads = _attention_heads(trace, query, key, value) if query.dim() == 4 else None
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if isinstance(mask, torch.Tensor) and mask.dim() == query.dim() == 4 and mask.shape[1] > 1:
        own = trace.dim(mask, 1)
        if own is not None or (heads is not None and mask.stride(1) > 0):
            labels.tie(heads, own, "attention's mask has a fixed number of heads")
    trace.attended += [side for side in (width, v[-1]) if side is not None]
    for dim in (k[-2], v[-2], q[-2]):
        labels.freeze(dim, "it is a position of attention")
    result = out[0] if isinstance(out, (tuple, list)) else out
    trace.set(result, [q[0], *([heads] if query.dim() == 4 else []), None, v[-1]])
    n, m = query.shape[-2], key.shape[-2]
    batch = prod(query.shape[:-2]) if heads is None else query.shape[0]
    for side, size in ((width, query.shape[-1]), (v[-1], value.shape[-1])):
        trace.count("matmul", batch * n * m * (size if side is None else 1), heads, side)


def flexible_attention(trace, func, args, kwargs, out) -> None:
    """Follows `torch.nn.attention.flex_attention` as the attention above.

    Freezes the heads where the code gives a function of scores or masks: it may differ from head to head.
    """
    query, key, value, score, mask, scale = args[:6]
    if getattr(score, "__name__", "") != "_identity" or getattr(mask[-1], "__name__", "") != "noop_mask":
        for tensor in (query, key, value):
            trace.labels.freeze(trace.dim(tensor, 1), "flex_attention's functions may depend on the head")
    own = isclose(scale, query.shape[-1] ** -0.5)  # PyTorch's, which follows the width of the heads
    attention(trace, func, (query, key, value), {"scale": None if own else scale}, out)


HIGHER_ORDER["flex_attention"] = flexible_attention


def _attention_heads(trace, query, key, value):
    """Ties the heads of q, k and v, and returns those of q, or None if they have no labels."""
    heads, shared = trace.dim(query, 1), []
    for tensor in (key, value):
        own = trace.dim(tensor, 1)
        times = query.shape[1] // tensor.shape[1]
        shared.append(own if own is None or times == 1 else np.repeat(own, times))
    if heads is None and shared == [None, None]:
        return None
    for other in shared:
        heads = trace.labels.tie(heads, other, "attention heads")
    return heads


def _matrix_product(trace, a, b, out, op: str, bias: torch.Tensor | None = None) -> None:
    trace.fit_made(a, 1, trace.dim(b, 0))  # a first hidden state of zeros
    a_dims, b_dims = trace.dims(a), trace.dims(b)
    inner = trace.labels.tie(a_dims[1], b_dims[0], "a product ties it to an input of fixed size")
    trace.set(out, [a_dims[0], b_dims[1]])
    _count_product(trace, op, [(a_dims[0], a.shape[0]), (inner, a.shape[1]), (b_dims[1], b.shape[1])])
    weight = b._base if b._is_view() else b
    whole = weight.dim() == 2 and weight.shape[0] == b.shape[1]  # not one of the projections in a joint weight
    if trace.is_state(weight) and whole and b.stride(0) == weight.stride(1):
        _linear_tap(trace, weight, b_dims[1], out, a, bias)


def _linear_tap(trace, weight, labels, out, x, bias) -> None:
    if labels is not None and trace.is_state(weight):
        trace.taps.append(Tap(weight, labels, norm=False, dim=-1))
    emitted = trace.emitted(x)
    inner = trace.dim(x, -1)
    if inner is not None and trace.is_state(weight):
        known = emitted is not None and emitted[0] == x.dim() - 1
        trace.reads(out, weight, inner, emitted[1][:, None] if known else None)
        if known and not bool(emitted[1].isnan().any()):
            values = trace.emitted(x, maps=True)[1]
            variances = variance_of(values, x.dim() - 1)[:, None] if x.dim() > 2 else None
            mean, deviation = product(weight, bias, emitted[1][:, None], variances)
            trace.set_emitted(out, out.dim() - 1, spread(mean, deviation, out.dim() - 1, out.dim(), trace.name(weight)))


def _batched(trace, a, b, out) -> None:
    (batch_a, n, inner_a), (batch_b, inner_b, m) = trace.dims(a), trace.dims(b)
    labels = trace.labels
    batch = None
    if batch_a is not None or batch_b is not None:
        batch = labels.tie(batch_a, batch_b, "a batched product joins it with a fixed size")
    inner = None
    if inner_a is not None or inner_b is not None:
        inner = labels.tie(inner_a, inner_b, "a product ties it to an input of fixed size")
    trace.set(out, [batch, n, m])
    trace.attended += [labels for labels in (inner, n, m) if labels is not None]
    sizes = [(batch, a.shape[0]), (n, a.shape[1]), (inner, a.shape[2]), (m, b.shape[2])]
    _count_product(trace, "bmm", sizes)


def _add_bias(trace, bias: torch.Tensor, out: torch.Tensor) -> None:
    dims = trace.dims(out)
    for axis in range(-bias.dim(), 0):
        if bias.shape[axis] == out.shape[axis] and bias.shape[axis] > 1:
            own = trace.dim(bias, axis)
            if own is not None or dims[axis] is not None:
                dims[axis] = trace.labels.tie(dims[axis], own, "a product adds a fixed size to it")
    trace.set(out, dims)


def _count_product(trace, op: str, dims) -> None:
    factor = prod(size for labels, size in dims if labels is None or size == 1)
    trace.count(op, factor, *(labels for labels, size in dims if size != 1))
