"""A masked model takes its group norms over the channels that are left, also where a detector has found no box."""

import torch
from torch import nn

from sirfp.verify.kept import _group_norm


def test_a_group_norm_of_no_boxes_is_empty():
    norm = nn.GroupNorm(2, 8)
    args = (torch.zeros(0, 8, 3, 3), norm.weight, norm.bias, 0, 8, 9, 2, norm.eps)
    kept = [None, torch.tensor([0, 1, 2, 4, 5, 6]), None, None]
    out = _group_norm(torch.ops.aten.native_group_norm, args, kept)
    assert out[0].shape == (0, 8, 3, 3)
