"""Attention whose sizes come from its weights computes what PyTorch's and torchvision's own classes compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from sirfp.network.multihead import PrunedMultihead
from sirfp.network.window_attention import PRUNED, note_head_width


def multihead(**options) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(24, 3, **options).double().eval()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.3)
    other = copy.deepcopy(dense)
    other.__class__ = PrunedMultihead
    return dense, other


OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "add_bias_kv": True, "batch_first": True},
    {"kdim": 10, "vdim": 7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("masks", ["none", "causal", "bool", "float", "each head", "padding", "both"])
@pytest.mark.parametrize("weights", [None, True, False], ids=["no weights", "mean weights", "weights"])
def test_multihead_attention_is_that_of_pytorch(options, masks, weights):
    dense, other = multihead(**options)
    sizes = (24, options.get("kdim", 24), options.get("vdim", 24))
    query, key, value = (torch.randn(5 + (i > 0), 2, n).double() for i, n in enumerate(sizes))
    if options.get("batch_first"):
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    mask = {
        "causal": torch.ones(5, 6).triu(1).bool(),
        "bool": torch.rand(5, 6) > 0.8,
        "float": torch.randn(5, 6).double(),
        "each head": torch.randn(6, 5, 6).double(),
        "both": torch.rand(5, 6) > 0.8,
    }.get(masks)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2]) if masks in ("padding", "both") else None
    given = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": weights is not None}
    results = [m(query, key, value, **given, average_attn_weights=bool(weights)) for m in (dense, other)]
    torch.testing.assert_close(results[0], results[1])


def test_multihead_attention_without_a_batch():
    dense, other = multihead()
    x = torch.randn(5, 24).double()
    torch.testing.assert_close(dense(x, x, x), other(x, x, x))


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (4, 7), (3, 3)], ids=str)
@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_is_that_of_torchvision(kind, bias, size, shift):
    torch.manual_seed(0)
    assert_replaced_is_the_same(kind(24, [4, 4], [shift, shift], 3, qkv_bias=bias), size)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 6), (2, 4, 7), (1, 3, 3), (7, 4, 9)], ids=str)
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 2), (0, 2, 1)], ids=str)
def test_window_attention_of_videos_is_that_of_torchvision(bias, size, shift):
    torch.manual_seed(0)
    assert_replaced_is_the_same(ShiftedWindowAttention3d(24, [3, 4, 4], list(shift), 3, qkv_bias=bias), size)


def assert_replaced_is_the_same(attention, size):
    """Asserts that the class whose sizes come from weights computes what torchvision's does, on maps of a size."""
    attention.double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, *size, 24).double()
    expected = attention(x)
    note_head_width(attention)
    attention.__class__ = PRUNED[type(attention)]
    torch.testing.assert_close(attention(x), expected)
