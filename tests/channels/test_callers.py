"""Finding groups and pruning change nothing that belongs to the caller, and work under any mode of the caller."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.network.untouched import copied_inputs, copied_model, outside_inference_mode, untouched


def images() -> torch.Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 3, 3)

    def forward(self, x):
        return self.o(self.b(self.a(x).relu()).relu())


class WritesIntoInputs(Net):
    def forward(self, x):
        x *= 255
        return super().forward(x) / 255


class WritesIntoParameters(Net):
    def forward(self, x):
        self.a.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x)


class CountsCalls(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.latest = x.mean()
        return super().forward(x)


class ReplacesBuffers(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 2, 3))
        return super().forward(x)


class DrawsNumbers(Net):
    def forward(self, x):
        return super().forward(x + 0.01 * (torch.rand(()) + random.random() + np.random.rand()))


class ChangesItsMode(Net):
    def forward(self, x):
        self.a.train()
        return super().forward(x)


def state_of(model: nn.Module):
    tensors = {name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return tensors, [m.training for m in model.modules()]


@pytest.mark.parametrize(
    "kind", [WritesIntoInputs, WritesIntoParameters, CountsCalls, ReplacesBuffers, DrawsNumbers, ChangesItsMode]
)
@pytest.mark.parametrize("trial", [True, False])
def test_finding_groups_leaves_everything_as_it_was(kind, trial):
    torch.manual_seed(0)
    model, x = kind().eval(), images()
    before, held = state_of(model), dict(model.named_parameters())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = find_groups(model, x, trial=trial)
    assert [g.name for g in found] == ["a", "b"]
    assert torch.equal(x, images())
    now = state_of(model)
    assert now[1] == before[1] and all(torch.equal(now[0][name], t) for name, t in before[0].items())
    assert all(held[name] is p for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize("kind", [WritesIntoInputs, CountsCalls, ReplacesBuffers, DrawsNumbers])
@pytest.mark.parametrize("criterion", ["random", "sirfp", "taylor"])
def test_pruning_leaves_inputs_and_buffers_and_random_states(kind, criterion):
    model, x = kind().eval(), images()
    calibration = [images(), images() + 0.1]
    given = copy.deepcopy(calibration)
    buffers = {name: t.clone() for name, t in model.named_buffers()}
    state = torch.get_rng_state(), random.getstate()
    sirfp.prune(
        model, x, criterion, keep_flops=0.5, calibration=calibration, loss=lambda m, b: m(b.clone()).square().mean()
    )
    assert torch.equal(x, images()) and all(map(torch.equal, calibration, given))
    assert all(torch.equal(t, buffers[name]) for name, t in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]


@pytest.mark.parametrize("given", ["loss", "forward", "both", "labels"])
@pytest.mark.parametrize("criterion", ["magnitude", "sirfp", "sirfp_joint"])
def test_functions_of_the_user_cannot_change_the_batches(given, criterion):
    """The model writes into what the user's own loss or forward gives it, in each of the passes over a batch."""
    torch.manual_seed(0)
    model, x = WritesIntoInputs().eval(), images()
    batches = [images(), images() / 2]
    calibration = [(batch, torch.zeros(2)) for batch in batches] if given == "labels" else batches
    own = (lambda m, b: m(b[0]).square().mean()) if given == "labels" else (lambda m, b: m(b).square().mean())
    functions = {"loss": own} if given != "both" else {"loss": own, "forward": lambda m, b: m(b)}
    if given == "forward":
        functions = {"forward": lambda m, b: m(b), "loss": lambda m, b: m(b.clone()).square().mean()}
    sirfp.prune(model, x, criterion, keep_flops=0.5, calibration=calibration, **functions)
    assert torch.equal(x, images())
    assert torch.equal(batches[0], images()) and torch.equal(batches[1], images() / 2)


def test_what_a_call_writes_is_put_back_under_the_same_tensors():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    weight, mean, values = model[0].weight, model[1].running_mean, model[0].weight.detach().clone()
    with untouched(model):
        weight.data = torch.zeros(3, 3)
        mean.add_(1)
        model[0].bias = nn.Parameter(torch.ones(5))
        model[0].register_buffer("new", torch.ones(1))
    assert model[0].weight is weight and torch.equal(weight, values)
    assert mean.eq(0).all() and model[0].bias.shape == (2,) and not hasattr(model[0], "new")


def test_copies_of_inputs_keep_their_structure():
    x = torch.ones(2)
    given = {"a": [x, (x, 3)], "b": None}
    done = copied_inputs(given)
    assert done["a"][0] is done["a"][1][0] and done["a"][0] is not x and done["a"][1][1] == 3 and done["b"] is None


class Decorated(Net):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class HasABlock(Net):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


def loss(model, batch):
    return F.mse_loss(model(batch), torch.zeros(()).expand(1, 3, 6, 6).expand(len(batch), -1, -1, -1))


@pytest.mark.parametrize("kind", [Decorated, HasABlock])
@pytest.mark.parametrize("criterion", ["magnitude", "sirfp", "taylor"])
def test_a_forward_in_inference_mode_is_cut(kind, criterion):
    model = kind()
    plan = sirfp.prune(model, images(), criterion, keep_flops=0.5, calibration=[images()], loss=loss)
    assert plan.flops[1] <= 0.5 * plan.flops[0]
    assert model(images()).is_inference()  # the model's own mode is untouched


@pytest.mark.parametrize("made_inside", [True, False])
@pytest.mark.parametrize("called_inside", [True, False])
@pytest.mark.parametrize("criterion", ["magnitude", "sirfp_joint"])
def test_a_model_made_or_pruned_in_inference_mode_can_be_trained(made_inside, called_inside, criterion):
    with torch.inference_mode(made_inside):
        model = nn.Sequential(Net(), nn.BatchNorm2d(3))
    with torch.inference_mode(called_inside):
        plan = sirfp.prune(model, images(), criterion, keep_flops=0.5, calibration=[images()], loss=loss)
        assert torch.is_inference_mode_enabled() is called_inside
    assert 0.4 < plan.flops[1] / plan.flops[0] <= 0.5
    model.train()(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_leaving_inference_mode_keeps_the_mode_of_gradients():
    for inside in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with inside():
            before = torch.is_grad_enabled()
            with outside_inference_mode():
                assert torch.is_grad_enabled() is before and not torch.is_inference_mode_enabled()
                with torch.inference_mode():
                    assert not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.jit.script(nn.PReLU(16)),
        lambda: torch.jit.script(nn.Conv2d(16, 16, 1)),
        lambda: torch.jit.trace(
            nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)).eval(), torch.rand(1, 16, 4, 4)
        ),
        lambda: torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(16, 16, 1)).eval())),
    ],
    ids=["activation", "convolution", "traced", "frozen"],
)
def test_a_scripted_part_is_kept_with_what_it_touches(build):
    class Holds(Net):
        def __init__(self):
            super().__init__()
            self.part, self.c = build(), nn.Conv2d(12, 12, 1)

        def forward(self, x):
            return self.o(self.c(self.b(self.part(self.a(x))).relu()).relu())

    model = Holds()
    found = find_groups(model, images())
    assert [g.name for g in found] == ["b", "c"]
    plan = sirfp.prune(model, images(), "sirfp", keep_flops=0.7, calibration=[images()])
    assert plan.flops[1] <= 0.7 * plan.flops[0]
    model.train()(images()).sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_model_that_is_torchscript_is_refused_in_one_line():
    with pytest.raises(InputError, match="the model is TorchScript"):
        find_groups(torch.jit.script(Net()), images())


class Merged(nn.Module):
    """Merges two convolutions into a third on every pass in evaluation mode."""

    def __init__(self, c):
        super().__init__()
        self.w, self.s, self.m = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, padding=1)

    def merge(self):
        weight = self.w.weight.data + F.pad(self.s.weight.data, (1, 1, 1, 1))
        return weight, self.w.bias.data + self.s.bias.data

    def forward(self, x):
        if self.training:
            return self.w(x) + self.s(x)
        self.m.weight.data, self.m.bias.data = self.merge()
        return self.m(x)


class ResizesItself(nn.Module):
    """Keeps a buffer of a width in the code, made anew on every pass."""

    def __init__(self, c):
        super().__init__()
        self.c = nn.Conv2d(c, c, 1)
        self.register_buffer("scale", torch.ones(c))

    def forward(self, x):
        x = self.c(x) * self.scale[:, None, None]
        self.scale = torch.ones(16)
        return x


class NewParameters(Merged):
    def forward(self, x):
        weight, bias = self.merge()
        self.m.weight, self.m.bias = nn.Parameter(weight), nn.Parameter(bias)
        return self.m(x)


def counted(net: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images())
    return counter.get_total_flops() // 2


def around(part: nn.Module, c: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, c, 3), part, nn.ReLU(), nn.Conv2d(c, 12, 3), nn.ReLU(), nn.Conv2d(12, 3, 3)
    ).eval()


@pytest.mark.parametrize("part", [NewParameters, ResizesItself])
def test_a_cut_that_the_forward_undoes_is_refused(part):
    net = around(part(16))
    reasons = {f.name: f.reason for f in find_groups(net, images()).frozen}
    assert any(name.startswith("1.") for name in reasons)
    plan = sirfp.prune(net, images(), "random", keep_flops=0.9)
    assert plan.flops[1] == counted(net)


def test_weights_merged_from_cut_weights_are_cut():
    net = around(Merged(16))
    plan = sirfp.prune(net, images(), "random", keep_flops=0.5)
    assert plan.flops[1] == counted(net) <= 0.5 * plan.flops[0]


@pytest.mark.parametrize("share", [False, True])
def test_a_copied_model_is_like_deepcopys(share):
    model = nn.Sequential(Net(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = nn.Parameter(model[2].weight.detach())
    model.tied, model.seen = model[2].weight, {1}
    line = torch.arange(6.0)
    buffers = {"line": line, "part": line[2:], "wide": line[:1].expand(5), "turned": torch.rand(2, 3).T}
    for name, buffer in buffers.items():
        model.register_buffer(name, buffer)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    own, wanted = copied_model(model, share=share), copy.deepcopy(model)
    for (name, mine), theirs in zip(own.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs) and mine.stride() == theirs.stride(), name
    assert own.tied is own[2].weight and own.seen == {1} and own.seen is not model.seen
    own(images())
    assert len(calls) == 1
    own[1].register_forward_hook(lambda *_: calls.append(2))
    own[1].running_mean.add_(1)
    own.line.zero_()
    model.eval()(images())
    assert len(calls) == 2 and model[1].running_mean.eq(0).all() and torch.equal(model.line, line) and line[5] == 5
    assert own.part.eq(0).all(), "buffers that share memory share it in the copy too"
