"""The rule for deformable convolutions: torchvision's operator, which Detectron2 calls on CPUs too."""

from __future__ import annotations

from math import prod

from .channel_labels import Tap
from .products import count_convolution
from .table import rule


@rule("torchvision::deform_conv2d")
def deformable(trace, func, args, kwargs, out) -> None:
    """Ties x (n, c, h, w) and weight (o, c / groups, k, k) like a convolution's; freezes offsets and modulation.

    Every offset group must move the same number of channels, so a cut removes the same index from each of them.
    Counted like a convolution, although fvcore does not count it.
    """
    x, weight, offset, modulation, bias = args[:5]
    groups, offset_groups, modulated = args[11:14]
    labels = trace.labels
    x_dims, w_dims = trace.dims(x), trace.dims(weight)
    for tensor in (offset, modulation) if modulated else (offset,):
        labels.freeze(trace.dim(tensor, 1), "it gives the sampling positions of a deformable convolution")
    for dim in (*x_dims[2:], *w_dims[2:]):
        labels.freeze(dim, "it is a spatial dimension of a convolution")
    reason = "a deformable convolution ties it to an input of fixed size"
    labels.tie_rows(x_dims[1], offset_groups)
    labels.tie(labels.tie_rows(x_dims[1], groups), w_dims[1], reason)
    labels.tie_rows(w_dims[0], groups)
    own_bias = trace.dim(bias, 0)  # torchvision passes a bias of zeros if the layer has none
    if own_bias is not None:
        labels.tie(w_dims[0], own_bias, reason)
    elif trace.is_state(bias):
        labels.freeze(w_dims[0], reason)
    trace.set(out, [x_dims[0], w_dims[0], None, None])

    positions = prod(out.shape[2:])
    count_convolution(trace, x, weight, positions)
    if w_dims[0] is not None and trace.is_state(weight):
        trace.taps.append(Tap(weight, w_dims[0], norm=False, dim=1))
