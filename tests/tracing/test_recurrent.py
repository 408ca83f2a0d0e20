"""Recurrent layers lose hidden channels: all gates, layers and directions the same."""

from __future__ import annotations

import pytest
import torch
from cut_proofs import prove
from torch import nn

from sirfp.channels import find_groups


class Sequences(nn.Module):
    def __init__(self, kind: type[nn.Module], **options):
        super().__init__()
        width = options.get("proj_size", 16) * (1 + options.get("bidirectional", False))
        self.embed, self.cells = nn.Linear(5, 12), kind(12, 16, batch_first=True, **options)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.cells(self.embed(x).relu())[0])


class ByStep(nn.Module):
    """A cell that the code calls for each position."""

    def __init__(self, kind: type[nn.Module]):
        super().__init__()
        self.embed, self.cells, self.head = nn.Linear(5, 12), kind(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        state = None
        for step in self.embed(x).unbind(1):
            state = self.cells(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Averaged(Sequences):
    """Averages over the positions, which is a statistic of a tensor whose channels a cut removes."""

    def forward(self, x):
        x, *_ = self.cells(self.embed(x).relu())
        return self.head(x.mean(1) + x.amax(1))


class Text(nn.Module):
    """Recognition of text: the columns of a feature map are the positions of a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.cells, self.head = nn.LSTM(64, 12, num_layers=2, bidirectional=True), nn.Linear(24, 7)

    def forward(self, x):
        return self.head(self.cells(self.c(x).flatten(1, 2).permute(2, 0, 1))[0])


class GivenStates(Sequences):
    """Writes the width of the first hidden states in its code."""

    def forward(self, x):
        state = torch.zeros(1, len(x), 16, dtype=x.dtype)
        return self.head(self.cells(self.embed(x), (state, state))[0])


class ByHand(nn.Module):
    """Convolutional cells whose first states the code makes, in a width that it writes or takes from a layer."""

    def __init__(self, joined: bool):
        super().__init__()
        self.joined, self.embed = joined, nn.Conv2d(3, 12, 1)
        self.gates, self.of_state = nn.Conv2d(12 + 16 * joined, 64, 3, padding=1), nn.Conv2d(16, 64, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        hidden = x.new_zeros(len(x), 16, *x.shape[3:])
        cell = torch.zeros(len(x), self.gates.out_channels // 4, *x.shape[3:], dtype=x.dtype)
        for step in x.unbind(1):
            step = self.embed(step)
            joined = torch.cat([step, hidden], 1)
            made = self.gates(joined) if self.joined else self.gates(step) + self.of_state(hidden)
            i, f, o, g = made.chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.head(hidden)


LAYERS = [
    (nn.LSTM, {}),
    (nn.GRU, {"num_layers": 2}),
    (nn.RNN, {"bias": False}),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    (nn.LSTM, {"proj_size": 8}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_hidden_channels_of_layers_go(kind, options):
    torch.manual_seed(0)
    found = prove(Sequences(kind, **options), torch.rand(1, 6, 5))
    assert [g.size for g in found if g.name.startswith("cells")] == [16, 8][: 1 + ("proj_size" in options)]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_a_mean_over_positions_keeps_no_hidden_channel(kind, options):
    torch.manual_seed(0)
    found = prove(Averaged(kind, **options), torch.rand(1, 6, 5))
    assert [f.name for f in found.frozen] == ["head"]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_hidden_channels_of_cells_go(kind):
    torch.manual_seed(0)
    assert [(g.name, g.size) for g in prove(ByStep(kind), torch.rand(1, 6, 5))] == [("embed", 12), ("cells", 16)]


def test_a_recurrent_layer_over_a_feature_map():
    torch.manual_seed(0)
    assert [(g.name, g.size) for g in prove(Text(), torch.rand(1, 1, 8, 10))] == [("c.0", 8), ("cells", 12)]


@pytest.mark.parametrize("joined", [True, False])
def test_cells_by_hand_whose_first_states_are_zeros(joined):
    torch.manual_seed(0)
    cells = ByHand(joined)
    if joined:
        del cells.of_state
    found = prove(cells, torch.rand(1, 3, 3, 5, 4))
    assert sorted(g.size for g in found) == [12, 16] and [f.name for f in found.frozen] == ["head"]


class OnFrames(nn.Module):
    """A convolutional cell whose first state stands beside the frames themselves, which have no channels to remove."""

    def __init__(self, frame_first: bool):
        super().__init__()
        self.frame_first, self.width = frame_first, 16
        self.gates, self.head = nn.Conv2d(3 + 16, 64, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, x):
        hidden = torch.zeros(len(x), self.width, *x.shape[3:]).to(x.dtype)
        cell = torch.zeros_like(hidden)
        for step in x.unbind(1):
            made = self.gates(torch.cat([step, hidden] if self.frame_first else [hidden, step], 1))
            i, f, o, g = torch.split(made, self.width, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.head(hidden)


@pytest.mark.parametrize("frame_first", [True, False])
def test_first_states_beside_an_input_of_fixed_size(frame_first):
    torch.manual_seed(0)
    found = prove(OnFrames(frame_first), torch.rand(1, 3, 3, 5, 4))
    assert [(g.name, g.size) for g in found] == [("gates", 16)] and [f.name for f in found.frozen] == ["head"]


def test_states_of_a_width_in_the_code_follow():
    torch.manual_seed(0)
    found = prove(GivenStates(nn.LSTM), torch.rand(1, 6, 5))
    assert [(g.name, g.size) for g in found] == [("embed", 12), ("cells", 16)]


class Leaky(nn.Module):
    """Neurons of a liquid network: each reads all by a curve of its own, and the first state is zeros."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.centres, self.weights, self.leak = (nn.Parameter(torch.rand(n)) for n in ((16, 16), (16, 16), (16,)))

    def forward(self, x):
        state = torch.zeros(len(x), 16, dtype=x.dtype)
        for step in x.unbind(1):
            curves = self.weights * (state.unsqueeze(-1) - self.centres).sigmoid()
            state = self.embed(step) + self.leak * state + curves.sum(1)
        return self.head(state)


def test_a_first_state_of_zeros_that_is_given_another_dimension():
    torch.manual_seed(0)
    network = Leaky().eval()
    (group,) = find_groups(network, torch.rand(1, 6, 5))
    assert group.size == 16 and {(s.tensor, s.dim) for s in group.slices} >= {("centres", 0), ("centres", 1)}
    prove(network, torch.rand(1, 6, 5), exact=False)
