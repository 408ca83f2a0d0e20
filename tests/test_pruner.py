"""A pruner in the training loops of others: it decides as a session does, and goes on after an interruption."""

from __future__ import annotations

import copy
import itertools
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from marks import slow_but
from small_networks import Residual, build, mean_square
from torch import nn

import sirfp
from sirfp.network.last_inputs import as_inputs
from sirfp.session import PruningSession

X = torch.randn(2, 3, 16, 16)
BATCHES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(9)]
CRITERIA = ["magnitude", "sirfp", "taylor", "sirfp_setwise"]


class Bare(nn.Module):
    """Layers without norms or dropout, some without a bias, which a cut gives them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.c, self.last = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.last(self.c(self.b(self.a(x).relu()).relu()).relu())


def bare() -> Bare:
    torch.manual_seed(0)
    return Bare()


class Biased(Bare):
    """A network in which a cut without a refit gives a layer a bias, since removed channels are constant and not 0."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        nn.init.uniform_(self.norm.bias, 0.5, 1)

    def forward(self, x):
        return self.last(self.c(self.b(self.norm(self.a(x)).relu()).relu()).relu())


def biased() -> Biased:
    torch.manual_seed(0)
    return Biased()


def train(model, optimizer, batch, pruner=None, scaler=None):
    """One training step; the pruner looks at it."""
    optimizer.zero_grad()
    with pruner.look():
        loss = mean_square(model, batch)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def in_steps(model, criterion, cuts=3, wrap=None, scaler=None, **arguments):
    """Three training steps before each cut; returns the plans and the optimizer."""
    model = wrap(model) if wrap else model
    optimizer = sgd(model.train())
    pruner = sirfp.Pruner(model, X, criterion=criterion, steps=cuts, optimizer=optimizer, **arguments)
    plans = []
    for cut in range(cuts):
        for batch in BATCHES[3 * cut : 3 * cut + 3]:
            train(model, optimizer, batch, pruner, scaler)
        plans.append(pruner.cut())
    return plans, optimizer, pruner


MAKERS = {"norms": lambda: build(Residual), "bare": bare, "new biases": biased}
THREE = [("norms", criterion) for criterion in CRITERIA] + [("bare", criterion) for criterion in CRITERIA]


@pytest.mark.parametrize(
    ("name", "criterion"), slow_but(THREE, *THREE[:3], ("bare", "taylor"), ("bare", "sirfp_setwise"))
)
def test_three_cuts_lead_to_the_budget_and_the_network_trains_on(name, criterion, tmp_path):
    make = MAKERS[name]
    model = make()
    plans, optimizer, pruner = in_steps(model, criterion, keep_flops=0.4)
    shares = [plan.flops[1] / plan.flops[0] for plan in plans]
    for share, wanted in zip(shares, (0.8, 0.6, 0.4), strict=True):
        assert 0.85 * wanted < share <= wanted
    assert pruner.done and pruner.cuts == 3 and pruner.plan == plans[-1]
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    with pytest.raises(sirfp.InputError, match="all 3 cuts are made"):
        pruner.cut()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    mean_square(model, X).backward()
    optimizer.step()
    assert not any(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    sirfp.save(tmp_path / "p.safetensors", model)
    assert sirfp.load(tmp_path / "p.safetensors", fresh := make()) == plans[-1]
    torch.testing.assert_close(fresh.eval()(X), model.eval()(X), rtol=0, atol=0)


@pytest.mark.parametrize("criterion", ["sirfp", "taylor"])
def test_the_statistics_are_those_of_a_training_run(criterion):
    model, other = bare(), bare()
    pruner = sirfp.Pruner(model, X, criterion=criterion, steps=1, reconstruction=0)
    session = PruningSession(other, X, criterion=criterion, period=1)
    for batch in BATCHES[:3]:
        train(model, sgd(model), batch, pruner)
        session.attach()
        optimizer = sgd(other)
        mean_square(other, batch).backward()
        session.attach().step()
        optimizer.step()
        optimizer.zero_grad()
        session.observer.detach()
        mean_square(model, X), mean_square(other, X)  # between two steps, the pruner does not look
    assert pruner.cut() == session.prune(pruner.target)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_batches_looked_at_without_training_give_the_plan_of_prune(criterion):
    model, other = bare(), bare()
    pruner = sirfp.Pruner(model, X, criterion=criterion, steps=1, loss=mean_square)
    for batch in BATCHES:
        pruner.look(batch)
    plan = sirfp.prune(other, X, criterion, calibration=BATCHES, loss=mean_square)
    assert pruner.cut() == plan
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


INTERRUPTED = list(
    itertools.product(("norms", "new biases"), ("of the dense model", "of the cut model"), ("taylor", "sirfp"))
)
PAIRS = [one for one in INTERRUPTED if (one[0] == "new biases") ^ (one[1] == "of the cut model") ^ (one[2] == "sirfp")]
"""Each two of the three values together, in half of the cases."""


@pytest.mark.parametrize(("name", "made", "criterion"), slow_but(INTERRUPTED, *PAIRS))
def test_an_interrupted_run_goes_on(name, made, criterion):
    model, dense = MAKERS[name]().train(), MAKERS[name]().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    average = torch.optim.swa_utils.AveragedModel(model)
    pruner = sirfp.Pruner(model, X, criterion=criterion, optimizer=optimizer, reconstruction=0, also=[average])
    state = None
    for step, batch in enumerate(BATCHES):
        if step == 4:  # one cut, and one look since
            state = copy.deepcopy([pruner.state_dict(), *(one.state_dict() for one in (model, optimizer, average))])
        train(model, optimizer, batch, pruner)
        average.update_parameters(model)
        if step % 3 == 2:
            pruner.cut()
    assert bool(pruner.plan.new_biases) == (type(model) is Biased)
    other = torch.optim.AdamW(dense.parameters(), lr=0.01) if made == "of the dense model" else None
    mean = torch.optim.swa_utils.AveragedModel(dense)
    again = sirfp.Pruner(dense, X, criterion=criterion, optimizer=other, reconstruction=0, also=[mean])
    again.load_state_dict(state[0])
    if other is None:
        other = again.optimizer = torch.optim.AdamW(dense.parameters(), lr=0.01)
    for one, its in zip((dense, other, mean), state[1:], strict=True):
        one.load_state_dict(its)
    again.load_state_dict(state[0])  # some libraries load it once more
    for step, batch in enumerate(BATCHES[4:], 4):
        train(dense, other, batch, again)
        mean.update_parameters(dense)
        if step % 3 == 2:
            again.cut()
    assert again.plan == pruner.plan and again.done
    for a, b in ((model, dense), (average, mean)):
        for name, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("criterion", ["taylor", "sirfp"])
def test_accumulated_gradients_are_one_step(criterion):
    plans = []
    for way in ("one look", "a look each"):
        model = bare()
        pruner = sirfp.Pruner(model, X, criterion=criterion, steps=1, reconstruction=0)
        if way == "one look":
            with pruner.look():
                for batch in BATCHES[:4]:
                    mean_square(model, batch).backward()
        else:
            for place, batch in enumerate(BATCHES[:4]):
                with pruner.look(complete=place == 3):
                    mean_square(model, batch).backward()
        plans.append(pruner.cut())
    assert plans[0] == plans[1]


def test_a_scaler_changes_nothing():
    plans = [in_steps(bare(), "taylor", scaler=scaler)[0] for scaler in (None, torch.amp.GradScaler("cpu"))]
    assert [plan.kept for plan in plans[0]] == [plan.kept for plan in plans[1]]


def test_a_step_that_fails_is_not_looked_at():
    model = bare()
    pruner = sirfp.Pruner(model, X, criterion="taylor", steps=1)
    with pytest.raises(RuntimeError, match="own"), pruner.look():
        mean_square(model, X).backward()
        raise RuntimeError("own")
    model.zero_grad()
    assert not model.a._forward_hooks and not model._forward_pre_hooks
    with pytest.raises(sirfp.InputError, match="has seen no gradients"):
        pruner.cut()


def test_the_inputs_of_a_step_that_fails_are_dropped():
    model = bare()
    pruner = sirfp.Pruner(model, X, criterion="sirfp_setwise", keep_flops=0.5, steps=1)
    for batch in (BATCHES[0], BATCHES[1][:, :2], BATCHES[2]):  # the second has too few channels
        with suppress(RuntimeError), pruner.look():
            mean_square(model, batch).backward()
    assert pruner.cut().flops[1] < pruner.plan.flops[0]


class Verbose(Bare):
    """Returns its features and, with a target, its loss beside the result."""

    def forward(self, x, target=None):
        features = self.a(x)
        result = self.last(self.c(self.b(features.relu()).relu()).relu())
        return {"result": result, "features": features, "loss": None if target is None else result.square().mean()}


@pytest.mark.parametrize("criterion", ["taylor", "sirfp_setwise"])
def test_only_the_outputs_that_count_keep_their_channels(criterion):
    torch.manual_seed(0)
    model = Verbose().train()
    average, result = copy.deepcopy(model), lambda out: out["result"]
    pruner = sirfp.Pruner(
        model, X, criterion=criterion, keep_flops=0.4, steps=2, outputs=result, also=[average], bias_correction=False
    )
    whole = sirfp.find_groups(model, X)
    for _ in range(2):
        for batch in BATCHES[:2]:
            with pruner.look():
                out = model(batch, target=0)
                assert out["features"] is not None, "a training step gets everything"
                out["loss"].backward()
        plan = pruner.cut()
        model.zero_grad()
    assert len(plan.kept) > len(whole.groups) and average.a.weight.shape == model.a.weight.shape
    assert model(X)["features"].shape[1] == model.a.out_channels < 16


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("criterion", "cuts"), [("taylor", 2), ("sirfp_setwise", 1)])
def test_wrapped_models(criterion, cuts, process_group):
    wanted = in_steps(bare(), criterion, cuts)[0]
    for wrap in (nn.parallel.DistributedDataParallel, lambda model: torch.compile(model, backend="eager")):
        assert in_steps(bare(), criterion, cuts, wrap=wrap)[0] == wanted


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(bare())
    optimizer = sgd(model)
    pruner = sirfp.Pruner(model, X, criterion="taylor", steps=2, optimizer=optimizer)
    for step, batch in enumerate(BATCHES[:6]):
        train(model, optimizer, batch[2 * rank : 2 * rank + 2], pruner)
        if step % 3 == 2:
            pruner.cut()
    torch.save((pruner.plan.to_json(), model.module.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_cut_alike(tmp_path):
    mp.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="fork")
    (one, weights), (other, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == other and all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_a_pruned_model_is_pruned_further_by_equal_steps():
    model = bare()
    first = sirfp.prune(model, X, "magnitude", keep_flops=0.8)
    pruner = sirfp.Pruner(model, X, criterion="magnitude", keep_flops=0.4, steps=2)
    shares = [(plan := pruner.cut()).flops[1] / plan.flops[0] for _ in range(2)]
    assert plan.flops[0] == first.flops[0] and 0.55 < shares[0] <= 0.61 and 0.36 < shares[1] <= 0.4


def test_what_cannot_be_is_said():
    model = bare()
    for arguments, words in (
        ({"keep_flop": 0.5}, "Pruner has no argument 'keep_flop' .did you mean keep_flops"),
        ({"keep_flops": 0.5, "keep_params": 0.5}, "give one budget, not 2"),
        ({"keep_flops": 0.001}, "smallest|least|reach"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"period": 1.5}, "period must be a whole number of at least 1, got 1.5"),
        ({"widths": "curve"}, "widths must be one of"),
        ({"outputs": "result"}, "outputs must be a function of the model's output"),
        ({"also": [build(Residual)]}, "model 0 of also= is not of the structure"),
    ):
        with pytest.raises(sirfp.InputError, match=words):
            sirfp.Pruner(model, X, **({"criterion": "magnitude"} | arguments))
    for criterion in ("taylor", "sirfp", "sirfp_setwise"):
        with pytest.raises(sirfp.InputError, match="look at training steps before each cut"):
            sirfp.Pruner(model, X, criterion=criterion).cut()
    pruner = sirfp.Pruner(model, X, criterion="magnitude")
    state = pruner.state_dict()
    with pytest.raises(sirfp.InputError, match="criterion 'magnitude', not of 'taylor'"):
        sirfp.Pruner(model, X, criterion="taylor").load_state_dict(state)
    with pytest.raises(sirfp.InputError, match="this is no state of a pruner.*lacks 'criterion'"):
        pruner.load_state_dict(model.state_dict())
    with pytest.raises(sirfp.InputError, match="this is no state of a pruner.* but NoneType"):
        pruner.load_state_dict(None)
    for changed, words in (
        ({"steps": "a"}, "'steps' must be a whole number of at least 0, got 'a'"),
        ({"steps": 1.5}, "'steps' must be a whole number"),
        ({"start": "a"}, "'start' must be a share of the dense model, got 'a'"),
        ({"start": float("nan")}, "'start' must be a share of the dense model, got nan"),
        ({"statistics": "x"}, "'statistics' must be those that Pruner.state_dict gives"),
        ({"statistics": {"criterion": 3, "iteration": 0}}, "'statistics' must be those"),
        ({"statistics": {"criterion": {}, "iteration": "a"}}, "'iteration' must be a whole number"),
    ):
        with pytest.raises(sirfp.InputError, match=words):
            pruner.load_state_dict(state | changed)
    pruner.cut()
    with pytest.raises(sirfp.InputError, match="cut in another way than in the state"):
        pruner.load_state_dict(state)


class Many(nn.Module):
    def forward(self, x, *more, mask=None, **named):
        return x


@pytest.mark.parametrize(
    ("args", "kwargs", "wanted"),
    [
        ((1,), {}, 1),
        ((1, 2), {}, (1, 2)),
        ((), {"x": 1, "labels": 2}, {"x": 1, "labels": 2}),
        ((1,), {"mask": 2, "labels": 3}, {"x": 1, "mask": 2, "labels": 3}),
    ],
)
def test_arguments_of_a_call_become_inputs(args, kwargs, wanted):
    assert as_inputs(Many(), args, kwargs) == wanted


def test_layers_keep_the_widths_that_are_given():
    pruner = sirfp.Pruner(bare(), X, criterion="magnitude", keep_flops=0.5, keep={"b": 0.5}, steps=2)
    pruner.cut()
    plan = pruner.cut()
    assert len(plan.kept["b"]) == 8 and plan.flops[1] <= 0.5 * plan.flops[0]
    only = sirfp.Pruner(other := bare(), X, criterion="magnitude", keep={"c": 6}, steps=1)
    assert len(only.cut().kept["c"]) == 6 and other.a.weight.shape[0] == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": {"b": 1.0}, "keep_flops": 0.05}, r"0.05 of the FLOPs is asked for, .*KEEP of 1 groups"),
        ({"keep": {"bb": 0.5}}, "KEEP names 'bb', which no layer of the model matches"),
        ({"keep": {"last": 0.5}, "steps": 1}, "KEEP names 'last', whose channels cannot be cut"),
        ({"round_to": 16, "keep_flops": 0.2}, r"0.733 .*ROUND_TO 16\); .* cut 1 of 3 on the way to 0.2 of the FLOPs$"),
        ({"min_keep": 0.5, "keep_flops": 0.2}, r"0.2 of the FLOPs .*\(MIN_KEEP 0.5\)$"),
    ],
    ids=["given width", "unknown layer", "frozen layer", "first cut", "last cut"],
)
def test_a_budget_out_of_reach_is_said_before_training(arguments, words):
    with pytest.raises(sirfp.InputError, match=words):
        sirfp.Pruner(bare(), X, criterion="magnitude", **arguments)


def test_all_cuts_together_leave_the_smallest_share_of_the_dense_model():
    for steps in (1, 3):
        with pytest.raises(sirfp.InputError, match="cannot be reached"):
            sirfp.Pruner(bare(), X, criterion="magnitude", keep_flops=0.15, min_keep=0.5, steps=steps)
    pruner = sirfp.Pruner(model := bare(), X, criterion="magnitude", keep_flops=0.4, min_keep=0.5, steps=3)
    shares = [(plan := pruner.cut()).flops[1] / plan.flops[0] for _ in range(3)]
    assert shares[-1] <= 0.4 and all(len(kept) >= 0.5 * plan.channels[name] for name, kept in plan.kept.items())
    with pytest.raises(sirfp.InputError, match="cannot be reached"):
        sirfp.prune(model, X, "magnitude", keep_flops=0.15, min_keep=0.5)


def test_the_time_of_a_plan_without_times_is_refused():
    model = bare()
    sirfp.prune(model, X, "magnitude", keep_flops=0.8)
    with pytest.raises(sirfp.InputError, match="its plan records no latency"):
        sirfp.Pruner(model, X, criterion="magnitude", keep_latency=0.5)
