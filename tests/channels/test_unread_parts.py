"""Parts of parameters that the example inputs do not reach stay: other inputs may reach them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.verify import compare, mask

LONGEST, WIDTH, SEEN = 60, 16, 9


class Tokens(nn.Module):
    """Adds the first rows of a table of positions; subclasses say how the code takes them."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, LONGEST, WIDTH))
        self.embed, self.norm = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def rows(self, count):
        return self.positions[:, :count]

    def forward(self, x):
        x = self.embed(x)
        x = x + self.rows(x.shape[1])
        return self.head(x + self.mlp(self.norm(x)))


class Narrowed(Tokens):
    def rows(self, count):
        return self.positions.narrow(1, 0, count)


class OfBuffer(Tokens):
    def __init__(self):
        super().__init__()
        table = self.positions.detach()
        del self.positions
        self.register_buffer("positions", table)


class OfView(Tokens):
    def rows(self, count):
        return self.positions.squeeze(0)[:count]


class OfSlice(Tokens):
    """The rows in the middle of the table, as relative positions are taken."""

    def rows(self, count):
        return self.positions[:, : LONGEST // 2 + count // 2 + count % 2][:, LONGEST // 2 - count // 2 :]


class OfNegativeBounds(Tokens):
    def rows(self, count):
        return self.positions[:, -count - 3 : -3] if count < LONGEST - 3 else self.positions[:, -count:]


class OfTransposed(Tokens):
    """A table of columns, of which a narrower one is taken first."""

    def __init__(self):
        super().__init__()
        self.columns = nn.Parameter(torch.randn(WIDTH, 1, LONGEST))

    def rows(self, count):
        return self.columns[..., : count + 0][..., :count].squeeze(1).t() + self.positions[:, LONGEST - count :]


class OfFlattened(Tokens):
    """A table of rows of four positions each."""

    def rows(self, count):
        table = self.positions.view(LONGEST // 4, 4, WIDTH)
        return table[: -(-count // 4)].flatten(0, 1)[:count]


class OfCopy(Tokens):
    """A copy of a slice, which shares no memory with the table."""

    def rows(self, count):
        return self.positions[:, : min(count + 7, LONGEST)].clone(memory_format=torch.contiguous_format)[:, :count]


class Computed(Tokens):
    """Positions that a layer computes from a table."""

    def __init__(self):
        super().__init__()
        self.of_positions = nn.Linear(WIDTH, WIDTH)

    def rows(self, count):
        return self.of_positions(self.positions[:, : min(LONGEST, count + 5)])[:, :count]


class Added(Tokens):
    """The sum of two tables, one of them scaled by a number that the code makes."""

    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.randn(1, LONGEST, WIDTH))

    def rows(self, count):
        return (self.positions * torch.full((1, LONGEST, 1), 0.5) + self.more)[:, :count]


class Parted(Tokens):
    def rows(self, count):
        return self.positions.split([count, LONGEST - count], 1)[0]


class Chunked(Tokens):
    def rows(self, count):
        return self.positions.chunk(2, 1)[0][:, :count] if count <= LONGEST // 2 else self.positions[:, :count]


class PartedByTensor(Tokens):
    def rows(self, count):
        return self.positions.tensor_split([count], 1)[0]


class Stepped(Tokens):
    def rows(self, count):
        return self.positions[:, :: LONGEST // count][:, :count]


class Unbound(Tokens):
    def rows(self, count):
        return torch.stack(self.positions.unbind(1)[:count], 1)


class Selected(Tokens):
    def rows(self, count):
        return self.positions.index_select(1, torch.arange(count))


class Indexed(Tokens):
    def rows(self, count):
        return self.positions[:, torch.arange(count)]


class Gathered(Tokens):
    def rows(self, count):
        return self.positions.gather(1, torch.arange(count).view(1, -1, 1).expand(1, -1, self.positions.shape[-1]))


class Embedded(Tokens):
    def rows(self, count):
        return F.embedding(torch.arange(count), self.positions[0])


class OfEmbedding(Tokens):
    def __init__(self):
        super().__init__()
        del self.positions
        self.table = nn.Embedding(LONGEST, WIDTH)

    def rows(self, count):
        return self.table(torch.arange(count))


class OfEmbeddingWeight(OfEmbedding):
    def rows(self, count):
        return self.table.weight[: min(LONGEST, count + 4)][:count]


class Factorised(Tokens):
    """Positions as the sum of a row of one table and a column of another, as axial positions."""

    def __init__(self):
        super().__init__()
        self.across, self.down = nn.Parameter(torch.randn(10, 1, WIDTH)), nn.Parameter(torch.randn(1, 6, WIDTH))

    def rows(self, count):
        lines = -(-count // 6)
        return (self.across + self.down)[:lines].flatten(0, 1)[:count]


class Resized(Tokens):
    def rows(self, count):
        table = self.positions[:, : min(LONGEST, count + 6)].transpose(1, 2)
        return F.interpolate(table, size=count, mode="linear").transpose(1, 2)


class Rolled(Tokens):
    def rows(self, count):
        return self.positions.roll(3, 1)[:, :count]


class Cached(Tokens):
    """Writes into a buffer as long as the longest input, and reads it back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, LONGEST, WIDTH))

    def rows(self, count):
        self.cache[:, :count] = self.positions[:, :count]
        return self.cache[:, : min(LONGEST, count + 2)][:, :count]


class Relative(nn.Module):
    """Attention with a bias that depends on the distance of two positions, from a table for the longest input."""

    def __init__(self, take):
        super().__init__()
        self.take, self.table = take, nn.Parameter(torch.randn(2, 2 * LONGEST - 1))
        self.embed, self.qkv, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        n = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) + self.take(self.table, n)
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Synthesised(nn.Module):
    """Attention whose weights a layer computes, one output for each position of the longest input."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.scores = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 20), nn.Linear(20, LONGEST)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        scores = self.scores(self.hidden(x).relu()).tanh()[..., : x.shape[1]]
        return self.head(x + scores @ x)


class Shifted(nn.Module):
    """Products of queries with all distances, of which those of the input are taken."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * LONGEST - 1, WIDTH))
        self.embed, self.query, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        n = x.shape[1]
        scores = (self.query(x) @ self.table.t()).split([LONGEST - n, 2 * n - 1, LONGEST - n], 2)[1]
        scores = torch.stack([scores[:, i, n - 1 - i : 2 * n - 1 - i] for i in range(n)], 1)
        return self.head(x + scores.sigmoid() @ x)


def by_strides(table, n):
    table = table[:, LONGEST - n : LONGEST + n - 1]
    return torch.stack([table[:, n - 1 - i : 2 * n - 1 - i] for i in range(n)], 1)


def by_padding(table, n):
    """The shift of Transformer-XL."""
    table = table[:, : LONGEST + n - 1][:, LONGEST - n :].flip(1)
    table = F.pad(table[:, None].expand(-1, n, -1), (0, 1)).flatten(1)[:, : n * (2 * n - 1)]
    return table.view(-1, n, 2 * n - 1)[..., n - 1 :]


def by_index(table, n):
    distance = torch.arange(n)[:, None] - torch.arange(n)[None] + LONGEST - 1
    return table[:, distance]


KINDS = [
    Tokens, Narrowed, OfBuffer, OfView, OfSlice, OfNegativeBounds, OfTransposed, OfFlattened, OfCopy, Computed, Added,
    Parted, Chunked, PartedByTensor, Stepped, Unbound, Selected, Indexed, Gathered, Embedded, OfEmbedding,
    OfEmbeddingWeight, Factorised, Resized, Rolled, Cached,
    Synthesised, Shifted,
    *(pytest.param(lambda take=take: Relative(take), id=take.__name__) for take in (by_strides, by_padding, by_index)),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_longer_inputs_are_those_of_the_masked_model_after_a_cut(kind, seen=SEEN):
    torch.manual_seed(0)
    dense = kind().eval()
    small = copy.deepcopy(dense)
    plan = sirfp.prune(small, torch.randn(1, seen, 6), "random", keep_params=0.5, bias_correction=False)
    assert 0 < small.embed.out_features < WIDTH
    mask(dense, plan)
    for count in (seen, SEEN - 2, WIDTH - 1, 31, LONGEST - 1, LONGEST):
        found = compare(dense, small, torch.randn(2, count, 6), plan)
        assert not found.problem and found.relative < 1e-5, (count, found)


@pytest.mark.parametrize("kind", [Tokens, OfSlice, Parted])
def test_inputs_as_long_as_the_embedding_is_wide(kind):
    test_longer_inputs_are_those_of_the_masked_model_after_a_cut(kind, seen=WIDTH)


def test_a_joint_weight_that_slices_read_in_full_can_be_cut():
    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 3) / 2)
            self.last = nn.Linear(12, 4)

        def forward(self, x):
            return self.last((x @ self.weight[:12].T).relu() * (x @ self.weight[12:].T))

    assert [group.size for group in find_groups(Joint().eval(), torch.randn(2, 3))] == [12]
