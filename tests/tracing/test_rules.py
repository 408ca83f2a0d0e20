"""Rules of operations: networks around one operation lose channels, and equal the masked network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cut_proofs import prove
from torch import nn
from torch.nn import functional as F

from sirfp.channels import find_groups


class Around(nn.Module):
    """A layer, an operation on its 16 channels, and two layers more.

    Args:
        operation: called with the network and the channels.
        dims: number of spatial dimensions.
        parts: modules or parameters of the operation.
    """

    def __init__(self, operation: Callable, dims: int = 2, **parts):
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.i, self.m, self.o = kind(2, 16, 1), kind(16, 12, 1), kind(12, 3, 1)
        self.operation = operation
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.o(self.m(self.operation(self, self.i(x))).relu())


class Spectral(nn.Module):
    """The Fourier unit of LaMa: a convolution over the real and imaginary parts of a spectrum."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(32, 32, 1)

    def forward(self, x):
        b, _, h, w = x.shape
        f = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        f = torch.stack((f.real, f.imag), -1).permute(0, 1, 4, 2, 3).contiguous().view(b, -1, h, w // 2 + 1)
        f = self.mix(f).relu().view(b, -1, 2, h, w // 2 + 1).permute(0, 1, 3, 4, 2).contiguous()
        return torch.fft.irfftn(torch.complex(f[..., 0], f[..., 1]), s=(h, w), dim=(-2, -1), norm="ortho")


def _fold(net, x):
    return F.fold(net.mix(F.unfold(x, 2, stride=2).transpose(1, 2)).transpose(1, 2), (8, 8), 2, stride=2)


def _filter(net, x):
    return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(net.w), s=(8, 8))


def _low_rank(net, x):
    return F.conv2d(x, net.w + (net.up @ net.down).view(net.w.shape))


def _mixed_kernels(net, x):
    """Each image has its own kernel, a mean of two."""
    share = net.gate(x.mean((2, 3))).sigmoid()[:, :, None, None, None, None]
    kernels = (share * net.w).sum(1).flatten(0, 1)
    out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=len(x))
    return out.view(len(x), -1, *x.shape[2:])


class Standardised(nn.Conv1d):
    """Normalises the kernel of each output, as one row."""

    def forward(self, x):
        return F.conv1d(x, F.normalize(self.weight.flatten(1), dim=1).view(self.weight.shape), self.bias)


def _unpool(net, x):
    """As in SegNet: other features are put where the maxima were."""
    small, index = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(net.c(small), index, 2)


def _attend(net, x):
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (net.qkv[i](tokens).unflatten(-1, (4, 4)).transpose(1, 2) for i in range(3))
    tokens = net.qkv[3](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def _messages(net, x):
    """The sum, by three functions, and the largest of the neighbours' rows."""
    rows, to = x.flatten(2)[0].t(), torch.tensor([1, 2, 3, 0, 0, 5, 63])
    given = rows[: len(to)] * 2
    index = to[:, None].expand(-1, rows.shape[1])
    added = torch.zeros(len(rows), rows.shape[1], dtype=x.dtype).index_add(0, to, given)
    added = added + torch.zeros_like(rows).scatter_add_(0, index, given)
    largest = torch.zeros(len(rows), 16, dtype=x.dtype).scatter_reduce(0, index, given, "amax")
    return (rows.index_copy(0, to, added[to]) + largest).t().unflatten(1, x.shape[2:])[None]


def _experts(net, x):
    """Each row goes to one of two layers."""
    rows = x.flatten(2).transpose(1, 2).flatten(0, 1)
    gate = net.gate(rows)
    out = torch.zeros_like(rows)
    for number, chosen in enumerate((gate[:, 0] > 0, gate[:, 0] <= 0)):
        (places,) = torch.where(chosen)
        out.index_add_(0, places, net.layers[number](rows[places]) * gate[places])
    return out.view(len(x), -1, x.shape[1]).transpose(1, 2).unflatten(2, x.shape[2:])


def _bilinear(net, x):
    x = x.movedim(1, -1)
    return net.b(x, net.c(x)).movedim(-1, 1)


def _nearest(net, x):
    """Distances to learned points, as weights of other points."""
    rows = x.flatten(2).transpose(1, 2)
    shares = torch.exp(-torch.cdist(rows, net.points[None].expand(len(x), -1, -1)))
    return (x.flatten(2) + (shares @ net.values).transpose(1, 2)).unflatten(2, x.shape[2:])


def _recurrence(net, x):
    """A state that begins as zeros, in the width of the channels or in one that the code writes."""
    state, other = x.new_zeros(len(x), x.shape[1], 5), torch.zeros(len(x), 16, 1, dtype=x.dtype)
    for column in x.mean(2).unbind(2):
        state = net.decay.sigmoid() * state + column[:, :, None]
        other = (other + column[:, :, None]) * 0.5
    return x + (state.sum(2) + other[..., 0])[:, :, None, None]


def _bags(net, x):
    return x + net.bag(torch.tensor([[1, 4, 4], [0, 2, 5]])).mean(0)[:, None, None]


OPERATIONS = {
    "reversed channels": lambda: Around(lambda net, x: net.c(x.flip(1)), c=nn.Conv2d(16, 16, 1)),
    "sum with reversed channels": lambda: Around(lambda _, x: x + x.flip(1, 2)),
    "padded channels": lambda: Around(lambda net, x: net.c(F.pad(x, (0, 0, 0, 0, 3, 1))), c=nn.Conv2d(20, 16, 1)),
    "a bag of embeddings": lambda: Around(_bags, bag=nn.EmbeddingBag(6, 16)),
    "messages": lambda: Around(_messages),
    "experts": lambda: Around(
        _experts, gate=nn.Linear(16, 1), layers=nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
    ),
    "bilinear layer": lambda: Around(_bilinear, b=nn.Bilinear(16, 8, 16), c=nn.Linear(16, 8)),
    "distances": lambda: Around(
        _nearest, points=nn.Parameter(torch.randn(6, 16)), values=nn.Parameter(torch.randn(6, 16))
    ),
    "distances to points for all": lambda: Around(
        lambda net, x: x + torch.cdist(x.movedim(1, -1).flatten(1, 2), net.points, p=1.0).mean(2)[:, None, :1, None],
        points=nn.Parameter(torch.randn(6, 16)),
    ),
    "state of a recurrence": lambda: Around(_recurrence, decay=nn.Parameter(torch.randn(16, 1))),
    "fold": lambda: Around(lambda _, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)),
    "fold of a layer": lambda: Around(_fold, mix=nn.Linear(64, 64)),
    "replicate in 3-D": lambda: Around(lambda _, x: F.pad(x, (0, 1) * 3, mode="replicate"), 3),
    "reflect in 3-D": lambda: Around(lambda _, x: F.pad(x, (0, 1) * 3, mode="reflect"), 3),
    "circular in 1-D": lambda: Around(lambda _, x: F.pad(x, (2, 1), mode="circular"), 1),
    "circular in 2-D": lambda: Around(lambda _, x: F.pad(x, (2, 1, 0, 8), mode="circular")),
    "circular in 3-D": lambda: Around(lambda _, x: F.pad(x, (0, 1) * 3, mode="circular"), 3),
    "circular convolution": lambda: Around(
        lambda net, x: net.c(x), c=nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
    ),
    "standardised kernels in 1-D": lambda: Around(
        lambda net, x: net.c(x), 1, c=Standardised(16, 16, 3)
    ),
    "unpooling": lambda: Around(
        lambda _, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)
    ),
    "unpooling of other channels": lambda: Around(_unpool, c=nn.Conv2d(16, 16, 3, padding=1)),
    "unpooling in 1-D": lambda: Around(lambda _, x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), 1),
    "unpooling in 3-D": lambda: Around(lambda _, x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), 3),
    "Fourier over positions": lambda: Around(lambda _, x: torch.fft.ifft2(torch.fft.fft2(x) * 2).real),
    "Fourier unit": lambda: Around(lambda net, x: net.unit(x), unit=Spectral()),
    "global filter": lambda: Around(_filter, w=nn.Parameter(torch.randn(16, 8, 5, 2))),
    "PReLU": lambda: Around(lambda net, x: net.act(x), act=nn.PReLU(16)),
    "PReLU by hand": lambda: Around(
        lambda net, x: torch.where(x > 0, x, net.w[:, None, None] * x), w=nn.Parameter(torch.rand(16))
    ),
    "log sigmoid": lambda: Around(lambda _, x: F.logsigmoid(x)),
    "random slopes": lambda: Around(lambda net, x: net.act(x), act=nn.RReLU()),
    "rot90": lambda: Around(lambda _, x: x.rot90(1, (2, 3))),
    "diagonal kernel": lambda: Around(
        lambda net, x: F.conv2d(x, torch.diag(net.w)[:, :, None, None]), w=nn.Parameter(torch.rand(16) + 0.5)
    ),
    "diagonal in a product": lambda: Around(
        lambda net, x: torch.einsum("oi,nihw->nohw", torch.diag_embed(net.w), x), w=nn.Parameter(torch.rand(16) + 0.5)
    ),
    "diagonal of a matrix": lambda: Around(
        lambda net, x: x * torch.diagonal(net.w)[:, None, None], w=nn.Parameter(torch.rand(16, 16) + 0.5)
    ),
    "diagonal of each map": lambda: Around(lambda _, x: x + torch.diagonal(x, dim1=2, dim2=3)[..., None]),
    "fake quantisation": lambda: Around(lambda _, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)),
    "lower triangle": lambda: Around(lambda _, x: x + torch.cumsum(x, 3).tril()),
    "upper triangle of a product": lambda: Around(
        lambda net, x: torch.einsum("nchw,ncvw->nchv", x, net.c(x).triu_(1)), c=nn.Conv2d(16, 16, 1)
    ),
    "inverse of each map": lambda: Around(lambda _, x: x + torch.linalg.inv(x + 9 * torch.eye(8))),
    "largest so far": lambda: Around(lambda _, x: x + x.cummax(3)[0] + x.cumsum(2).cumsum_(3) + x.logcumsumexp(3)),
    "squeezed in place": lambda: Around(lambda _, x: x * x.mean((2, 3), keepdim=True)[:, None].squeeze_(1)),
    "one kernel for all": lambda: Around(
        lambda net, x: F.conv2d(x, net.k.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]),
        k=nn.Parameter(torch.randn(1, 1, 3, 3)),
    ),
    "low-rank weight": lambda: Around(
        _low_rank, w=nn.Parameter(torch.randn(16, 16, 1, 1)), up=nn.Parameter(torch.randn(16, 4)),
        down=nn.Parameter(torch.randn(4, 16)),
    ),
    "kernels of each image": lambda: Around(
        _mixed_kernels, w=nn.Parameter(torch.randn(2, 16, 16, 3, 3)), gate=nn.Linear(16, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_pass(name):
    torch.manual_seed(0)
    network = OPERATIONS[name]()
    dims = network.i.weight.dim() - 2
    if "quantisation" in name:  # in steps: sums of float64 in another order may round to another one
        assert [g.size for g in find_groups(network, torch.rand(1, 2, 8, 8))] == [16, 12]
        return
    found = prove(network, torch.rand(2 if "each" in name else 1, 2, *[8] * dims))
    fixed = {"bag", "c"} if "embeddings" in name or "padded" in name else set()  # entries of a table, the padding
    assert {"o"} <= {f.name for f in found.frozen} <= {"o"} | fixed


def _written(net, x):
    made = torch.zeros(len(x), x.shape[1], *x.shape[2:])
    made[:, 0] = 1  # always the first channel, whichever that is
    return x + made


def _spaced(net, x):
    return x + torch.linspace(0, 1, x.shape[1], out=torch.zeros(x.shape[1])).view(-1, 1, 1)


@pytest.mark.parametrize("operation", [_written, _spaced])
@pytest.mark.parametrize("width", [4, 6, 8, 16])
def test_a_tensor_whose_channels_the_code_tells_apart_keeps_them(operation, width):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, width, 1), Lambda(operation), nn.Conv2d(width, 12, 1), nn.Conv2d(12, 3, 1))
    assert [g.name for g in find_groups(network.eval(), torch.rand(2, 2, 6, 6))] == ["2"]


class Lambda(nn.Module):
    def __init__(self, operation: Callable):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(self, x)


@pytest.mark.parametrize("part", [lambda rows: 8, lambda rows: rows.shape[1] // 2], ids=["written", "half"])
def test_an_index_for_a_part_of_the_channels_keeps_only_those_channels(part):
    def add(net, x):
        rows, to = x.flatten(2)[0].t(), torch.tensor([1, 2, 0, 0, 5])
        index = to[:, None].expand(-1, part(rows))
        return rows.scatter_add(0, index, rows[:5]).t().unflatten(1, x.shape[2:])[None]

    torch.manual_seed(0)
    assert [g.name for g in find_groups(Around(add), torch.rand(1, 2, 4, 4))] == ["m"]


def test_channels_that_padding_moves_stay():
    found = find_groups(Around(lambda net, x: F.pad(x, (0, 0, 0, 0, 1, -1))), torch.rand(1, 2, 4, 4))
    assert [g.name for g in found] == ["m"]
    assert next(f.reason for f in found.frozen if f.name == "i") == "it is padded"


def test_attention_without_a_given_scale_loses_heads_or_their_width():
    torch.manual_seed(0)
    found = prove(Around(_attend, qkv=nn.ModuleList(nn.Linear(16, 16) for _ in range(4))), torch.rand(1, 2, 4, 4))
    assert {group.name for group in found} >= {"i", "m"} and len(found) > 2


def test_a_transform_over_channels_keeps_them():
    network = Around(lambda _, x: torch.fft.fft(x, dim=1).real)
    found = find_groups(network, torch.rand(1, 2, 8, 8))
    assert [g.name for g in found] == ["m"]
    assert "Fourier" in next(f.reason for f in found.frozen if f.name == "i")


@pytest.mark.parametrize(
    "operation, size",
    [(lambda w: torch.diag(w, 1), 15), (lambda w: torch.outer(w, w).diagonal(1).diag(1), 16)],
    ids=["put", "taken"],
)
def test_a_diagonal_beside_the_main_one_keeps_what_it_joins(operation, size):
    network = Around(lambda net, x: F.conv2d(x, operation(net.w)[..., None, None]), w=nn.Parameter(torch.rand(size)))
    assert [g.name for g in find_groups(network, torch.rand(1, 2, 8, 8))] == ["m"]


def test_an_expanded_buffer_passes():
    network = Around(lambda net, x: F.conv2d(x, net.k, padding=1, groups=x.shape[1]))
    network.register_buffer("k", torch.full((1, 1, 3, 3), 1 / 9).expand(16, 1, 3, 3))
    assert [g.size for g in prove(network, torch.rand(1, 2, 8, 8))] == [16, 12]
