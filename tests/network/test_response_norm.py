"""Local response norms of pruned networks sum over the channels that were neighbours in the dense network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.exporting import missing_packages
from sirfp.network.response_norm import PrunedResponseNorm, give_positions, refit_response_norms
from sirfp.verify import compare, mask

PLAIN = {"bias_correction": False, "reconstruction": 0}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def norm(size: int = 5) -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(size, alpha=1.0, beta=0.75, k=2.0)  # strong enough for a wrong neighbour to show


def drawn(model: nn.Module) -> nn.Module:
    """Gives a model values that hide nothing behind zeros and ones."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=draw) - (0.3 if tensor.dim() > 1 else 0.0))
    return model.eval()


def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(24, 32, 3, padding=1, groups=2), nn.ReLU(), norm(4), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(32, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Dropout(),
        nn.Linear(32, 5),
    )  # fmt: skip


class Inception(nn.Module):
    """As GoogLeNet begins: norms between convolutions and over branches side by side, a head for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), norm()
        self.one, self.three, self.pool = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.joined = norm(7)
        self.aux, self.aux_norm, self.aux_head = nn.Conv2d(26, 10, 1), norm(3), nn.Linear(10, 5)
        self.head = nn.Linear(26, 5)

    def forward(self, x):
        x = self.first(self.stem(x).relu())
        x = torch.cat([self.one(x), self.three(x), self.pool(F.max_pool2d(x, 3, 1, 1))], 1).relu()
        x = self.joined(x)
        out = self.head(x.mean((2, 3)))
        return (out, self.aux_head(self.aux_norm(self.aux(x)).mean((2, 3)))) if self.training else out


class Shared(nn.Module):
    """One norm after layers that a shortcut joins."""

    def __init__(self, second: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, second, 3, padding=1), norm()
        self.c, self.head = nn.Conv2d(second, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.norm(self.a(x).relu())
        return self.head(self.c(self.norm(self.b(x).relu())).relu())


class Sequence(nn.Module):
    """Features of one dimension, whose norm PyTorch computes in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 20, 3), norm(), nn.Conv1d(20, 4, 3)

    def forward(self, x):
        return self.b(self.norm(self.a(x.flatten(2)).relu()))


class Volume(Sequence):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 20, 3, padding=1), nn.Conv3d(20, 4, 3, padding=1)

    def forward(self, x):
        return self.b(self.norm(self.a(x.unflatten(2, (4, 4))).sigmoid()))


class AfterStatistics(nn.Module):
    """Statistics over the channels before and after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 20, 3), norm(), nn.Conv2d(20, 4, 3)

    def forward(self, x):
        x = self.norm((self.a(x) - self.a(x).mean(1, keepdim=True)).relu())
        return self.b(x * x.amax(1, keepdim=True))


NETWORKS = [alexnet, Inception, Shared, Sequence, Volume, AfterStatistics]


def masked(model: nn.Module, plan: sirfp.PruningPlan) -> nn.Module:
    copied = copy.deepcopy(model)
    mask(copied, plan)
    return copied


@pytest.mark.parametrize("network", NETWORKS)
def test_a_cut_network_equals_the_masked_one(network):
    dense = drawn(network())
    pruned = copy.deepcopy(dense)
    plan = sirfp.prune(pruned, IMAGES, "random", keep_flops=0.5, **PLAIN)
    assert any(isinstance(m, PrunedResponseNorm) for m in pruned.modules())
    assert 0.4 < plan.flops[1] / plan.flops[0] <= 0.5
    assert compare(masked(dense, plan), pruned, IMAGES, plan).relative < 1e-5


@pytest.mark.parametrize("network", [alexnet, Inception, Shared, Sequence])
def test_an_independent_masked_network_gives_the_same_in_both_modes(network):
    """Where activations keep zero at zero, the dense network's own norm over zeros is the measure."""
    dense = drawn(network())
    pruned = copy.deepcopy(dense)
    zeroed = masked(dense, sirfp.prune(pruned, IMAGES, "random", keep_flops=0.5, **PLAIN))
    for training in (False, True):
        outputs = []
        for model in (zeroed, pruned):
            for module in model.train(training).modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            with torch.no_grad():
                outputs.append(model(IMAGES))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_masked_network():
    dense = drawn(Inception())
    pruned = copy.deepcopy(dense)
    plan = sirfp.prune(pruned, IMAGES, "random", keep_flops=0.5, **PLAIN)
    zeroed = masked(dense, plan)
    for model in (zeroed, pruned):
        sum(out.square().mean() for out in model.train()(IMAGES)).backward()
    cut = {place: list(c.keep) for c in plan.cuts for place in c.tensors}
    for name, parameter in pruned.named_parameters():
        wanted = zeroed.get_parameter(name).grad
        for dim in range(wanted.dim()):
            wanted = wanted.index_select(dim, torch.tensor(cut.get((name, dim), range(wanted.shape[dim]))))
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_saved_loaded_and_cut_again(network, tmp_path):
    dense = drawn(network())
    pruned = copy.deepcopy(dense)
    first = sirfp.prune(pruned, IMAGES, "random", keep_flops=0.7, **PLAIN)
    whole = sirfp.prune(pruned, IMAGES, "random", keep_flops=0.4, **PLAIN)
    assert whole.flops[1] < first.flops[1]
    assert compare(masked(dense, whole), pruned, IMAGES, whole).relative < 1e-5
    sirfp.save(tmp_path / "small.safetensors", pruned)
    loaded = network()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    assert set(loaded.state_dict()) == set(dense.state_dict())  # positions are the plan's
    for model in (loaded, pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned)):
        torch.testing.assert_close(model.eval()(IMAGES), pruned(IMAGES), rtol=0, atol=0)
    assert find_groups(loaded, IMAGES).atoms < find_groups(dense, IMAGES).atoms


@pytest.mark.parametrize("second, shrinks", [(16, True), (12, False)])
def test_features_that_share_a_norm_lose_the_same_channels(second, shrinks):
    found = find_groups(drawn(Shared(second)), IMAGES)
    groups = {group.name: {piece.tensor for piece in group.slices} for group in found}
    assert ({"a.weight", "b.weight"} <= groups.get("a", set())) == shrinks
    assert shrinks or {"a", "b"} <= {f.name for f in found.frozen if "several widths" in f.reason}
    assert "c" in groups


@pytest.mark.parametrize("size", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("shape", [(2, 20, 7), (2, 20, 3, 3), (1, 20, 2, 3, 2)])
def test_sums_are_those_over_zeros(size, shape):
    """Any window, even or longer than the layer, and any number of dimensions."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    keep = torch.tensor([0, 1, 3, 4, 9, 10, 16, 19])
    dense = nn.LocalResponseNorm(size, alpha=2.0, beta=0.6, k=0.5)
    pruned = copy.deepcopy(dense)
    give_positions(pruned, 20, torch.device("cpu"))
    pruned.positions = pruned.positions[keep]
    refit_response_norms(pruned)
    zeros = torch.zeros_like(x).index_copy(1, keep, x.index_select(1, keep))
    torch.testing.assert_close(pruned(x.index_select(1, keep)), dense(zeros).index_select(1, keep))
    assert len(pruned.neighbours) < size


def test_a_plan_for_other_widths_changes_nothing():
    dense = drawn(alexnet())
    plan = sirfp.prune(copy.deepcopy(dense), IMAGES, "random", keep_flops=0.5, **PLAIN)
    other = alexnet()
    other[0] = nn.Conv2d(3, 26, 5, 2, 2)
    with pytest.raises(InputError, match="another model"):
        sirfp.surgery.apply(other, plan)
    assert not any(isinstance(m, PrunedResponseNorm) for m in other.modules())


class Functional(nn.Module):
    """A call of the function: no module could hold positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        return self.c(self.b(F.local_response_norm(self.a(x).relu(), 5)).relu())


class Legacy(Functional):
    """PyTorch's older class, whose sum over neighbours keeps the first channel for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.CrossMapLRN2d(5)

    def forward(self, x):
        return self.c(self.b(self.norm(self.a(x).relu())).relu())


@pytest.mark.parametrize("network", [Functional, Legacy])
def test_norms_of_other_kinds_stay_whole(network):
    dense = drawn(network())
    found = find_groups(dense, IMAGES)
    assert [g.name for g in found] == ["b"] and "a" in {f.name for f in found.frozen}
    pruned = copy.deepcopy(dense)
    plan = sirfp.prune(pruned, IMAGES, "random", keep_flops=0.7, **PLAIN)
    assert compare(masked(dense, plan), pruned, IMAGES).relative < 1e-5


@pytest.mark.skipif(bool(missing_packages()), reason="needs the packages of ONNX")
def test_it_can_be_exported(tmp_path):
    import onnxruntime

    pruned = drawn(Inception())
    sirfp.prune(pruned, IMAGES, "random", keep_flops=0.5, **PLAIN)
    torch.onnx.export(pruned, (IMAGES,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), pruned(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    dense = drawn(alexnet())
    before = [(type(m), set(vars(m))) for m in dense.modules()]
    find_groups(dense, IMAGES)
    assert [(type(m), set(vars(m))) for m in dense.modules()] == before
