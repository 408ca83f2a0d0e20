"""NaN and infinity change no weight and no statistics, are counted, and end a run after many in a row."""

from __future__ import annotations

import copy
import itertools
import json
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from small_networks import mean_square
from test_engine import LineTrainer
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.config import load_config
from sirfp.criteria import CRITERIA, build_criterion
from sirfp.errors import InputError
from sirfp.moments import take_moments
from sirfp.prune import calibrate
from sirfp.training.nonfinite import FiniteSteps, clear, finite_norms, restore
from sirfp.training.step import MixedPrecisionTrainer

NAN, INF = float("nan"), float("inf")


def network(width: int = 12, kernel: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(*layers)


class Task(nn.Module):
    """A network that returns its loss on a batch, as Detectron2's do."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.network, self.factor = network(), factor

    def forward(self, x):
        return {"loss": self.network(x).square().mean() * self.factor}


def trained(batches, limit: int = 0, precision=None, momentum: float = 0.0):
    """A task after a step on each batch."""
    torch.manual_seed(0)
    model = Task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    trainer = MixedPrecisionTrainer(model, batches, optimizer, precision, lambda: None, max_nonfinite=limit)
    with EventStorage(0) as storage:
        for trainer.iter in range(len(batches)):
            trainer.run_step()
            storage.step()
        trainer.finite.read_counts(len(batches))
    return trainer, storage


def broken(batch: torch.Tensor, value: float) -> torch.Tensor:
    batch = batch.clone()
    batch[-1, 0, 2, 2] = value
    return batch


GOOD = list(torch.randn(6, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_an_iteration_that_is_not_finite_changes_nothing(value, caplog):
    plain, _ = trained(GOOD)
    with caplog.at_level(logging.WARNING):
        other, storage = trained([*GOOD[:2], broken(GOOD[2], value), *GOOD[2:4], broken(GOOD[3], value), *GOOD[4:]])
    for name, tensor in plain.model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(other.model.state_dict()[name], tensor)
    assert other.finite.seen == 2
    assert storage.history("sirfp/nonfinite").latest() >= 1
    assert all(loss < 1e30 for loss, _ in storage.history("total_loss").values())
    assert "NaN or infinite loss or gradients; they were skipped" in caplog.text


def test_norms_keep_their_statistics_where_a_value_is_too_large_to_be_squared():
    trainer, _ = trained([*GOOD[:2], broken(GOOD[2], 1e30)])
    wanted, _ = trained(GOOD[:2])
    assert trainer.finite.seen == 0, "its loss was finite, as norms divide by the variance"
    for name, tensor in trainer.model.state_dict().items():
        assert tensor.isfinite().all()
        if "1.running" in name:
            assert torch.equal(tensor, wanted.model.state_dict()[name])


def test_a_gradient_that_is_not_finite_counts_like_a_loss():
    model = Task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard, before = FiniteSteps(), copy.deepcopy(model.state_dict())
    guard.remember(model)
    model(GOOD[0])["loss"].backward()
    model.network[0].weight.grad[0, 0, 0, 0] = INF
    guard.undo(optimizer, guard.judge(optimizer))
    optimizer.step()
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert all("num_batches" in name for name in changed) and guard.read_counts(1) and guard.seen == 1


def test_many_in_a_row_end_a_run():
    batches = [broken(GOOD[0], NAN)] * 4
    trained([*batches, GOOD[0], *batches], limit=5)
    with pytest.raises(InputError, match="were not finite in 5 iterations in a row, by iteration 6"):
        trained([GOOD[0], *batches, *batches], limit=5)
    trained(batches * 3, limit=0)


def test_a_gpu_is_asked_now_and_then_only():
    guard = FiniteSteps(limit=3)
    guard._counts = torch.tensor([9, 9, 9], device="meta")  # reading it would fail
    assert not any(guard.read_counts(i) for i in range(1, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_a_gpu_does_without_asking(dtype):
    odd = torch.tensor([1.0, NAN, INF, -INF, 0.5]).to(dtype)
    maps = torch.randn(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    for keep in (True, False):
        tensors = [odd.clone(), maps.clone(), torch.ones(2, dtype=torch.float16)]
        clear(tensors, torch.tensor(keep))
        for now, was in zip(tensors, [odd, maps, torch.ones(2, dtype=torch.float16)], strict=True):
            assert torch.equal(now.nan_to_num(7), was.nan_to_num(7)) if keep else not now.any()
        now, before = [odd.clone(), maps * 2], [odd * 3, maps]
        wanted = [t.clone() for t in (now if keep else before)]
        restore(now, before, torch.tensor(keep))
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(now, wanted, strict=True))


def test_an_overflow_of_float16_skips_the_step_and_lowers_the_scale():
    torch.manual_seed(0)
    model = Task()
    before = copy.deepcopy(model.network.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = MixedPrecisionTrainer(model, [GOOD[0]] * 40, optimizer, torch.float16, lambda: None)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    with EventStorage(0):
        trainer.iter = 0
        trainer.run_step()
        assert trainer.scaler.get_scale() == 2.0**39
        for name, tensor in model.network.state_dict().items():
            assert "num_batches" in name or torch.equal(tensor, before[name])
        for trainer.iter in range(1, 40):
            trainer.run_step()
        assert 0 < trainer.finite.seen < 39, "it has found a scale by now"
    assert not torch.equal(model.network[0].weight, before["0.weight"])


class Diverging(LineTrainer):
    """Its loss is NaN from an iteration on."""

    start = 6

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.count()

    def losses(self, model, data):
        return {"loss": model(None)["loss"] * (NAN if data >= self.start else 1)}


def test_a_run_that_diverges_ends_with_a_checkpoint_to_go_on_from(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "60", "SIRFP.MAX_NONFINITE", "4"]
    cfg = load_config("", [*opts, "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.BASE_LR", "0.1"])
    with pytest.raises(InputError, match=r"in 4 iterations in a row, by iteration 10.*SOLVER.BASE_LR.*--resume"):
        Diverging(cfg).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    kept = torch.load(tmp_path / "model_0000009.pth", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())
    again = LineTrainer(cfg)
    again.resume_or_load(resume=True)
    again.train()
    assert again.iter == 60
    said = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert 0 in [line.get("sirfp/nonfinite") for line in said]
    assert all(line["total_loss"] < 1e9 for line in said if "total_loss" in line)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs != "moments"])
def test_statistics_are_those_of_what_is_finite(name, value):
    found, scores = None, []
    for batches in (GOOD, [*GOOD[:3], broken(GOOD[0], value)[1:], *GOOD[3:]]):
        model = network().eval()
        found = find_groups(model, GOOD[0])
        options = {"ema": 0.0, "stride": 1} if name in ("sirfp", "sirfp_joint") else {}
        options |= {"edge_weight": 0.3, "edge_prefixes": ("",)} if name == "sirfp" else {}
        criterion = build_criterion(name, model, found.groups, **options)
        if criterion.needs != "weights":
            calibrate(model, criterion, batches, mean_square)
            assert criterion.left_out == (len(batches) - len(GOOD) if "sirfp" in name else 0)
        scores.append(criterion.scores())
    for group, score in scores[0].items():
        torch.testing.assert_close(scores[1][group], score)


@pytest.mark.parametrize("name", CRITERIA)
def test_weights_or_images_without_a_number_are_said(name):
    model = network().eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    if build_criterion(name, model, find_groups(model, GOOD[0]).groups).needs != "weights":
        with pytest.raises(InputError, match="finite|has seen no"):
            sirfp.prune(model, GOOD[0], name, 0.5, calibration=[GOOD[0] * NAN], loss=mean_square)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    if name != "random":
        with torch.no_grad():
            model[0].weight[3], model[1].weight[3] = NAN, NAN
        with pytest.raises(InputError, match="finite|has seen no"):
            sirfp.prune(model, GOOD[0], name, 0.5, calibration=GOOD, loss=mean_square)


def test_norms_and_moments_are_those_of_what_is_finite():
    model = network()
    with finite_norms(model):
        update_bn_stats(model, [GOOD[0], GOOD[0]], 2)
        plain = {n: t.clone() for n, t in model.state_dict().items()}
        update_bn_stats(model, [GOOD[0], broken(GOOD[0], NAN), GOOD[0], broken(GOOD[0], INF)], 4)
    for name, tensor in model.state_dict().items():
        assert "num_batches" in name or torch.allclose(tensor, plain[name], rtol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    found = find_groups(model, GOOD[0])
    moments = take_moments(model, found, GOOD)
    other = take_moments(model, found, [broken(GOOD[0], NAN), *GOOD, broken(GOOD[0], INF)])
    assert moments
    for name, moment in moments.items():
        for one, two in zip(moment.statistics(), other[name].statistics(), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 3, 1, 1), (1, 3, 1, 1)], ids=str)
@pytest.mark.parametrize("name", CRITERIA)
def test_one_image_and_maps_of_one_position(name, shape):
    model = network(kernel=1).eval()
    plan = sirfp.prune(model, torch.randn(shape), name, 0.6, calibration=[torch.randn(shape)] * 2, loss=mean_square)
    assert plan.flops[1] <= 0.6 * plan.flops[0] and model(torch.randn(shape)).isfinite().all()


@pytest.mark.parametrize("name", CRITERIA)
def test_dead_channels_go_first_and_a_layer_of_one_channel_stays(name):
    model = network().eval()
    dead = [1, 4, 5, 7, 10, 11]
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[dead] = 0
        model[3].weight[:, dead] = 0
    narrow = nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 1)
    model = nn.Sequential(*model, nn.ReLU(), *narrow).eval()
    wanted = model(GOOD[0])
    options = {"coupled": "graph"} if name in ("sirfp", "sirfp_joint") else {}
    plan = sirfp.prune(model, GOOD[0], name, 0.7, calibration=GOOD, loss=mean_square, min_keep=0.5, **options)
    assert model(GOOD[0]).isfinite().all() and model[8].out_channels == 1
    removed = set(range(12)) - set(plan.kept.get("0", range(12)))
    if name in ("magnitude", "slimming", "taylor", "depgraph"):
        assert removed and removed <= set(dead), "those that do nothing go first"
    if removed <= set(dead) and len(plan.kept) == 1:
        torch.testing.assert_close(model(GOOD[0]), wanted)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_network_that_is_dead_altogether_is_pruned(name):
    model = network().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    plan = sirfp.prune(model, GOOD[0], name, 0.5, calibration=GOOD, loss=mean_square)
    assert plan.flops[1] <= 0.5 * plan.flops[0] and model(GOOD[0]).isfinite().all()


class Raising(Diverging):
    """Its model stops in the forward pass, as Detectron2's region proposals do, in some iterations."""

    bad: tuple[int, ...] = (3, 4)

    def losses(self, model, data):
        losses = model(None)
        if data in self.bad:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        return losses


def settings(folder, *opts):
    cfg = ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "12", "SIRFP.MAX_NONFINITE", "4", *opts]
    return load_config("", [*cfg, "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.BASE_LR", "0.1"])


def test_a_forward_pass_that_stops_at_nan_is_an_iteration_that_is_skipped(tmp_path):
    trainer = Raising(settings(tmp_path))
    trainer.train()
    assert trainer.iter == 12 and trainer._trainer.finite.seen == 2
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_a_run_whose_forward_passes_all_stop_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Raising, "bad", tuple(range(5, 99)))
    with pytest.raises(InputError, match=r"in 4 iterations in a row, by iteration 9.*SOLVER.BASE_LR.*--resume"):
        Raising(settings(tmp_path)).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000008.pth"


def test_several_processes_end_in_one_line(tmp_path, monkeypatch):
    class InSeveral(Raising):
        def losses(self, model, data):
            if data in self.bad:
                monkeypatch.setattr("sirfp.training.step.comm.get_world_size", lambda: 2)
            return super().losses(model, data)

    trainer = InSeveral(settings(tmp_path))
    with pytest.raises(InputError, match="not finite, at iteration 3 .*SOLVER.BASE_LR"):
        trainer.train()


def test_moments_leave_out_a_batch_at_which_the_model_stops():
    from small_networks import Residual

    from sirfp.channels import find_groups
    from sirfp.moments import take_moments

    torch.manual_seed(0)
    model, images = Residual().eval(), [torch.rand(2, 3, 16, 16) for _ in range(4)]
    found = find_groups(model, images[0])

    def run(network, batch):
        if batch is images[1]:
            raise FloatingPointError("NaN")
        return network(batch)

    taken = take_moments(model, found, images, run)
    assert taken and all(moments.images == 6 for moments in taken.values())
