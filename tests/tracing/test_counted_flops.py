"""FLOPs of a plan are what PyTorch counts while the network runs, also in parts whose result is unused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import sirfp


class DeepSupervision(nn.Module):
    """Heads of earlier stages, whose outputs count in training only; in evaluation mode they run for nothing."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.early, self.head = nn.Conv2d(16, 5, 1), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.a(x).relu()
        early = self.early(x)
        x = self.head(self.b(x).relu())
        return (x, early) if self.training else x


class Encoder(nn.Module):
    """PyTorch's encoder, which runs as one fused operation in evaluation mode, and a layer on its tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 5)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class OneCall(nn.Module):
    """Attention in one call, of fewer heads of keys than of queries."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 5)
        self.q, self.k, self.v, self.o = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = (f(x).unflatten(2, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class Volumes(nn.Module):
    """Transposed and grouped convolutions of volumes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 16, 3, 2, 1), nn.Conv3d(16, 16, 3, padding=1, groups=4)
        self.c, self.head = nn.ConvTranspose3d(16, 12, 2, 2), nn.Conv3d(12, 2, 1)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """Multiplications and additions of a call, in pairs, without the fused kernels that PyTorch cannot count."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", [DeepSupervision, Encoder, OneCall, Volumes], ids=lambda kind: kind.__name__)
def test_flops_are_those_that_pytorch_counts(kind):
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(1, 3, 8, 16, 16) if kind is Volumes else torch.randn(1, 3, 16, 16)
    dense, norms = copy.deepcopy(model), sum(isinstance(m, nn.LayerNorm) for m in model.modules())
    plan = sirfp.prune(model, x, "random", keep_flops=0.5)
    for network, flops in ((dense, plan.flops[0]), (model, plan.flops[1])):
        width = network.embed.out_channels if norms else 0
        allowed = norms * 16 * width * 5  # of layer norms, which PyTorch does not count
        assert 0 <= flops - counted(network, x) <= allowed, (flops, counted(network, x))
