"""Attention of any kind loses whole heads where the width of its heads cannot shrink, and embeddings follow."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from cut_proofs import prove
from torch import nn
from torch.nn import functional as F

import sirfp
from sirfp.channels import find, find_groups, fit_sizes
from sirfp.prune import cut
from sirfp.verify import compare, mask

WIDTH, HEADS = 24, 3


class Tokens(nn.Module):
    """An embedding, attention with a residual, and a classifier."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(8, WIDTH), attention, nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x + self.attention(x)).mean(1))


class Attention(nn.Module):
    """Writes the width of the heads; the number of heads follows."""

    def __init__(self):
        super().__init__()
        self.w = WIDTH // HEADS
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.w).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1) * self.w**-0.5).softmax(-1)
        return self.o((a @ v).transpose(1, 2).reshape(b, n, -1))


class Joint(nn.Module):
    """The attention of most vision transformers: one layer for q, k and v, and sizes from the input's width."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(*qkv.unbind(0)).transpose(1, 2).reshape(b, n, c))


class Fused(Joint):
    """PyTorch's fused attention, whose scale follows the width of the heads."""

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class PartsInside(Joint):
    """The parts lie inside each head: (heads, 3, width)."""

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, self.num_heads, 3, c // self.num_heads).transpose(1, 2).unbind(3)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(b, n, c))


class BatchOfHeads(Joint):
    """Heads lie in the batch dimension, as in PyTorch's own class."""

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        w = c // self.num_heads
        q, k, v = (t.transpose(0, 1).reshape(n, b * self.num_heads, w).transpose(0, 1) for t in (q, k, v))
        a = torch.bmm(q, k.transpose(1, 2) * self.scale).softmax(-1)
        return self.proj(torch.bmm(a, v).transpose(0, 1).reshape(n, b, c).transpose(0, 1))


class RelativePositions(Joint):
    """A table of biases with a column for each head, added as a mask."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(19, HEADS))

    def attend(self, q, k, v):
        place = torch.arange(q.shape[-2])
        bias = self.table[(place[:, None] - place + 9).flatten()].view(len(place), len(place), -1).permute(2, 0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


class Grouped(nn.Module):
    """Two heads of queries share one head of keys and values."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused, self.w = fused, 4
        self.q, self.k, self.v = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12)
        self.o = nn.Linear(24, WIDTH)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, self.w).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (t[:, :, None].expand(b, t.shape[1], 2, n, self.w).flatten(1, 2) for t in (k, v))
            x = (q @ k.transpose(-2, -1) * self.w**-0.5).softmax(-1) @ v
        return self.o(x.transpose(1, 2).reshape(b, n, -1))


class Dropping(Attention):
    """Asks for its mode, so that it is traced in training too."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5 if self.training else 0.0)


class OfPyTorch(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.m = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x):
        return self.m(x, x, x, need_weights=False)[0]


KINDS = [
    pytest.param(make, id=name)
    for name, make in {
        "width in the code": Attention,
        "joint": Joint,
        "asks for its mode": Dropping,
        "fused": Fused,
        "parts inside heads": PartsInside,
        "heads in the batch": BatchOfHeads,
        "relative positions": RelativePositions,
        "grouped": lambda: Grouped(False),
        "grouped, fused": lambda: Grouped(True),
        "PyTorch": OfPyTorch,
        "PyTorch, without bias": lambda: OfPyTorch(bias=False),
        "PyTorch, separate": lambda: OfPyTorch(kdim=WIDTH, vdim=WIDTH, add_bias_kv=True, add_zero_attn=True),
    }.items()
]


@pytest.mark.parametrize("make", KINDS)
def test_whole_heads_go_and_the_embedding_too(make):
    torch.manual_seed(0)
    found = prove(Tokens(make()), torch.rand(1, 10, 8))
    assert found["embed"].size == WIDTH
    heads = [group for group in found if group.name.startswith("attention")]
    assert [group.size for group in heads] == [HEADS]
    assert heads[0].width > 1
    assert {f.name for f in found.frozen if f.reason != "it is indexed"} == {"head"}  # positions of a table


@pytest.mark.parametrize("make", KINDS)
def test_whole_heads_cost_few_traces_and_copies(make, monkeypatch):
    counts = {"traces": 0, "copies": 0}

    def counted(kind, function):
        def call(*args, **kwargs):
            counts[kind] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(find, "_trace_once", counted("traces", find._trace_once))
    failure = fit_sizes.CorrectedCopy.failure
    monkeypatch.setattr(fit_sizes.CorrectedCopy, "failure", counted("copies", failure))
    find_groups(Tokens(make()), torch.rand(1, 10, 8))
    assert counts["traces"] <= 3 and counts["copies"] <= 6, counts


@pytest.mark.parametrize("first", [False, True], ids=["norm last", "norm first"])
def test_heads_of_encoder_layers_go(first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, norm_first=first, batch_first=True, dropout=0.0)
    found = prove(Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)), torch.rand(2, 10, 8))
    assert [g.size for g in found if "self_attn" in g.name] == [4, 4]
    assert not {f.name for f in found.frozen} - {"head"}


class Decoder(nn.Module):
    """Attends from learnt queries to an image, as DETR does, with a mask of padding."""

    def __init__(self):
        super().__init__()
        self.queries, self.embed = nn.Parameter(torch.randn(4, WIDTH)), nn.Linear(8, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True, dropout=0.0)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(WIDTH, 5)

    def forward(self, x):
        padded = torch.arange(x.shape[1]).expand(len(x), -1) > 7
        queries = self.queries.expand(len(x), -1, -1)
        return self.head(self.decoder(queries, self.embed(x), memory_key_padding_mask=padded))


def test_heads_of_cross_attention_go():
    torch.manual_seed(0)
    found = prove(Decoder(), torch.rand(2, 10, 8))
    assert [g.size for g in found if "attn" in g.name] == [HEADS] * 4


@pytest.mark.parametrize("criterion", ["sirfp", "taylor", "magnitude", "depgraph"])
def test_criteria_rank_heads(criterion, tmp_path):
    torch.manual_seed(0)
    model, other = (Tokens(nn.Sequential(OfPyTorch(), Fused(), Grouped(True))).eval() for _ in range(2))
    x, batches = torch.rand(2, 10, 8), [torch.rand(4, 10, 8) for _ in range(2)]
    loss = {"loss": lambda m, batch: m(batch).square().mean()} if criterion == "taylor" else {}
    plan = sirfp.prune(model, x, criterion, keep_flops=0.5, calibration=batches, **loss)
    assert plan.flops[1] <= 0.505 * plan.flops[0]
    sirfp.save(tmp_path / "small.safetensors", model, plan)
    sirfp.load(tmp_path / "small.safetensors", other)
    assert torch.equal(model(x), other.eval()(x))


class Inside(Joint):
    """Sizes follow the weights, so that the width of the heads can shrink."""

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


def test_heads_that_can_shrink_in_width_do():
    torch.manual_seed(0)
    found = prove(Tokens(Inside()), torch.rand(1, 10, 8))
    assert {g.size for g in found if g.name.startswith("attention")} == {WIDTH // HEADS}


class Shuffled(nn.Module):
    """A channel shuffle with sizes in the code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.o(x.view(-1, 2, 6, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8))


def test_a_channel_shuffle_loses_channels_and_not_rows():
    torch.manual_seed(0)
    found = prove(Shuffled(), torch.rand(1, 3, 8, 8))
    assert [(g.name, g.size) for g in found] == [("a", 6), ("b", 6)]


class Kept(Joint):
    """Divides by a number of heads that does not follow: the values of a cut network would be others."""

    def attend(self, q, k, v):
        return super().attend(q, k, v) / q.shape[1]


def test_attention_that_computes_something_else_stays():
    found = find_groups(Tokens(Kept()).eval(), torch.rand(1, 10, 8))
    assert [g.name for g in found] == ["embed"]
    assert "another" in next(f.reason for f in found.frozen if f.name == "attention.qkv")


def test_ignored_heads_stay():
    found = find_groups(Tokens(Joint()).eval(), torch.rand(1, 10, 8), ["attention.qkv"])
    assert not found.groups  # the only other channels are those that it reads


class Windows(nn.Module):
    """Attention whose queries may be given; its output is reshaped to the width of its input."""

    def __init__(self, heads: int, parts: int):
        super().__init__()
        self.heads, self.dim = heads, 6
        self.qkv, self.proj = nn.Linear(heads * 6, parts * heads * 6), nn.Linear(heads * 6, heads * 6)

    def forward(self, x, given=None):
        b, n, c = x.shape
        made = self.qkv(x).reshape(b, n, -1, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = made[0] if given is None else given.reshape(b, n, self.heads, self.dim).transpose(1, 2)
        a = (q * self.dim**-0.5 @ made[-2].transpose(-2, -1)).softmax(-1)
        return self.proj((a @ made[-1]).transpose(1, 2).reshape(b, n, c))


class GlobalQueries(nn.Module):
    """The embedding is the query of a second attention, so that it too loses whole heads, as in GCViT."""

    def __init__(self, heads: int):
        super().__init__()
        self.embed, self.head = nn.Linear(8, heads * 6), nn.Linear(heads * 6, 5)
        self.local, self.globally = Windows(heads, 3), Windows(heads, 2)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.local(x)
        return self.head((x + self.globally(x, x)).mean(1))


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_few_heads_and_an_embedding_of_as_many_may_lose_different_numbers(heads):
    """Of two heads only one can go, so widths that must be equal stay so by chance where all groups are cut."""
    torch.manual_seed(0)
    model, x = GlobalQueries(heads).eval(), torch.randn(2, 5, 8)
    found = find_groups(model, x)
    assert [group.size for group in found] == [heads, heads]
    for lost in range(1, heads):
        for group in found:
            keep = np.ones(found.atoms, dtype=bool)
            keep[np.arange(found.atoms)[found.spans[group.name]][:lost]] = False
            small, masked = copy.deepcopy(model), copy.deepcopy(model)
            plan = cut(small, found, keep, bias_correction=False)
            mask(masked, plan)
            difference = compare(masked, small, x, plan)
            assert not difference.problem and difference.relative < 1e-5


class MustAgree(GlobalQueries):
    """Reshapes what its attention makes to the width of the embedding by the operator itself."""

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.local.qkv(x).reshape(b, n, 3, self.local.heads, 6).permute(2, 0, 3, 1, 4).unbind(0)
        kept = torch.ops.aten.reshape(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2), (b, n, c))
        return self.head(self.globally(x, x).mean(1)) + self.local.proj(kept).mean((1, 2))[:, None]


def test_pairs_of_heads_that_must_agree_stay():
    """The operator is called directly, so its size cannot be replaced, and a cut of one group alone fails."""
    torch.manual_seed(0)
    found = find_groups(MustAgree(2).eval(), torch.randn(2, 5, 8))
    assert {group.name for group in found} == {"local.proj", "globally.proj"}


class FromTheFirst(nn.Module):
    """Attention of the first token, with weights, which PyTorch's own code computes with heads inside the batch."""

    def __init__(self):
        super().__init__()
        self.m = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.m(x[:, :1], x, x)[0]


def test_heads_that_a_trial_leaves_whole_count_the_statistics_of_the_masked_copy():
    """Two kinds of small groups are cut without each other; embeddings that are outputs stay whole too."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Tokens(FromTheFirst()), Tokens(Attention())

        def forward(self, x):
            return self.first(x) + self.second(x), self.first.embed(x), self.second.embed(x)

    torch.manual_seed(0)
    found = prove(Two(), torch.rand(2, 10, 8))
    assert [group.size for group in found if "attention" in group.name] == [HEADS] * 2


class SingleHead(nn.Module):
    """Writes a single head as wide as the input; the scale follows its width, so the head stays whole."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (layer(x).reshape(b, n, 1, c).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_a_head_that_stays_whole_keeps_its_size_where_the_code_takes_that_of_the_input():
    torch.manual_seed(0)
    found = prove(Tokens(SingleHead()), torch.rand(1, 10, 8))
    assert found["embed"].size == WIDTH
    assert "attention.q" in {f.name for f in found.frozen}


class Anchors(nn.Module):
    """Returns one class score for each anchor and position: the split of the outputs stays as it was first."""

    def __init__(self):
        super().__init__()
        self.body, self.scores = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        return self.scores(self.body(x).relu()).view(len(x), 2, 3, *x.shape[2:])


def test_the_first_trace_is_the_last_where_splits_stay_as_they_were_first(monkeypatch):
    heads, trace_once = [], find._trace_once

    def noted(model, inputs, ignore, shared, known, search):
        heads.append(dict(known))
        return trace_once(model, inputs, ignore, shared, known, search)

    monkeypatch.setattr(find, "_trace_once", noted)
    model = Anchors()
    found = find_groups(model, torch.rand(1, 3, 4, 4))
    assert [list(known.values()) for known in heads] == [[], [1]]
    assert [(group.name, group.size) for group in found] == [("body", 8)]
    assert [(f.name, f.channels) for f in found.frozen] == [("scores", 6)] and found.heads == {}
    assert found.flops() == 4 * 4 * (3 * 9 * 8 + 8 * 6)
