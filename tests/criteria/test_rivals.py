"""The rivals' scores and sparsity training, by cases that can be worked out by hand, and gradients on whole models."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from small_networks import NETWORKS, OneLayer, build
from small_segmentors import segmentor
from torch import nn

from sirfp.channels import find_groups
from sirfp.clique import exact, value
from sirfp.criteria import CRITERIA, build_criterion
from sirfp.errors import InputError
from sirfp.hooks.sparsity import add_group_penalty, add_slimming_penalty
from sirfp.prune import calibrate
from sirfp.redundancy import edge_weights

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def layer(kernels=((3.0, 0, 0), (0, 4.0, 0), (0, 0, 0)), gamma=(1.0, -2.0, 3.0), norm=nn.BatchNorm2d):
    model = OneLayer([list(k) for k in kernels])
    model.norm = norm(len(kernels))
    if gamma:
        model.norm.weight.data = torch.tensor(gamma)
    return model.eval()


def scored(model, name, *gradients, **options):
    """Scores of a one-layer network after iterations with these gradients, {parameter: gradient}."""
    criterion = build_criterion(name, model, find_groups(model, X).groups, **options)
    for gradient in gradients:
        for parameter, values in gradient.items():
            tensor = model.get_parameter(parameter)
            tensor.grad = torch.tensor(values).reshape(tensor.shape)
        criterion.step()
    return criterion.scores()["layer"].tolist()


def test_slimming_is_the_scale_of_the_norm():
    assert scored(layer(), "slimming") == [1, 2, 3]
    frozen = layer(gamma=None, norm=FrozenBatchNorm2d)
    frozen.norm.weight.copy_(torch.tensor([-5.0, 1, 2]))
    assert scored(frozen, "slimming") == [5, 1, 2]


def test_slimming_without_a_norm_is_the_norm_of_the_filter():
    assert scored(layer(gamma=None, norm=lambda n: nn.Identity()), "slimming") == [3, 4, 0]


def test_fpgm_is_the_sum_of_distances_to_the_other_filters():
    assert scored(layer(), "fpgm") == pytest.approx([5 + 3, 5 + 4, 3 + 4])


def test_depgraph_sums_all_coupled_weights_relative_to_the_group():
    model = layer()
    model.head.weight.data = torch.tensor([[1.0, 0, 2], [1, 1, 0]])[:, :, None, None]
    norms = [9 + 1 + 2, 16 + 4 + 1, 0 + 9 + 4]
    assert scored(model, "depgraph") == pytest.approx([n / (sum(norms) / 3) for n in norms])


def test_taylor_is_the_mean_square_of_gradient_times_weight():
    model = layer()
    model.norm.bias.data = torch.tensor([1.0, 1, 0])
    first = {"norm.weight": [1.0, 1, 1], "norm.bias": [1.0, 1, 1]}  # carried: 1 + 1, -2 + 1, 3 + 0
    second = {"norm.weight": [0.0, 1, 0], "norm.bias": [0.0, 0, 0]}  # 0, -2, 0
    assert scored(model, "taylor", first, second) == [4 / 2, (1 + 4) / 2, 9 / 2]
    infinite = {"norm.weight": [float("inf"), 0, 0]}
    assert scored(model, "taylor", first, infinite, second) == [2, 2.5, 4.5]


def test_taylor_without_a_trained_scale_takes_the_filters():
    model = layer(gamma=None, norm=FrozenBatchNorm2d)
    assert scored(model, "taylor", {"layer.weight": [1.0, 0, 0, 0, -1, 0, 1, 1, 1]}) == [9, 16, 0]


def test_taylor_adds_layers_that_share_channels_before_it_squares():
    model = build(NETWORKS[0])
    criterion = build_criterion("taylor", model, find_groups(model, torch.randn(1, 3, 16, 16)).groups)
    for norm, gradient in ((model.b[1], 1.0), (model.short[1], -1.0), (model.d[1], 2.0)):
        norm.weight.data.fill_(1)
        norm.bias.data.fill_(0)
        norm.weight.grad, norm.bias.grad = torch.full((16,), gradient), torch.zeros(16)
    criterion.step()
    assert criterion.scores()["b.0"].tolist() == [4.0] * 16


def test_dcfp_moves_only_where_the_gradient_has_the_sign_of_the_scale():
    gradient = {"norm.weight": [2.0, 2.0, -1.0]}
    assert scored(layer(), "dcfp", gradient, ema=0.5) == [1, 0, 0]
    opposite = {"norm.weight": [-4.0, -4.0, 4.0]}
    assert scored(layer(), "dcfp", gradient, opposite, gradient, ema=0.5) == [1.5, 2, 2]


def test_dcfp_without_a_trained_scale_takes_gates_on_the_filters():
    model = layer(gamma=None, norm=FrozenBatchNorm2d)
    assert scored(model, "dcfp", {"layer.weight": [1.0, 0, 0, 0, -1, 0, 1, 1, 1]}, ema=0.5) == [1.5, 0, 0]


def test_a_group_without_gradients_goes_last_and_none_at_all_is_said():
    model = build(NETWORKS[0])
    groups = find_groups(model, torch.randn(1, 3, 16, 16)).groups
    for name in ("taylor", "dcfp"):
        criterion = build_criterion(name, model, groups)
        with pytest.raises(InputError, match="has seen no gradients"):
            criterion.scores()
        model.a[1].weight.grad = model.a[1].weight.detach().clone()
        criterion.step()
        scores = criterion.scores()
        assert (scores["c.0"] == scores["a.0"].max()).all()
        again = build_criterion(name, model, groups)
        again.load_state_dict(criterion.state_dict())
        again.reduce()
        assert all(torch.equal(score, again.scores()[n]) for n, score in scores.items())
        model.zero_grad()


def annotated(seed, size=64):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((size, size), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 50]])), gt_classes=torch.tensor([1]))
    return {
        "image": torch.rand(3, size, size, generator=generator) * 255, "height": size, "width": size,
        "instances": instances, "sem_seg": torch.randint(0, 5, (size, size), generator=generator),
    }  # fmt: skip


def detector(name):
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(f"COCO-Detection/{name}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    torch.manual_seed(0)
    return build_model(cfg)


MODELS = {
    "segmentor": lambda: segmentor("DeepLabV3PlusHead", "18", "BN"),
    "retinanet": lambda: detector("retinanet_R_50_FPN_1x"),  # one head on five levels; FrozenBN, two stages frozen
}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_on_detectron_models_leave_no_trace(kind):
    model = MODELS[kind]().train()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    batch = [annotated(0), annotated(1)]
    groups = find_groups(model, [{"image": batch[0]["image"], "height": 64, "width": 64}], trial=False).groups
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    required = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    results = []
    for name in ("taylor", "taylor", "dcfp"):
        criterion = build_criterion(name, model, groups)
        calibrate(model, criterion, [batch])
        results.append(criterion.scores())
    for group in groups:
        assert all(scores[group.name].shape == (group.size,) for scores in results)
        first, again = (scores[group.name] for scores in results[:2])  # dropout is off, draws are the same
        torch.testing.assert_close(first, again, rtol=1e-3, atol=1e-6 * float(first.max()))
    assert all((scores[group.name] > 0).any() for scores in results[:1] for group in groups)
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for name in ("slimming", "fpgm", "depgraph"):
        assert all(s.isfinite().all() for s in build_criterion(name, model, groups).scores().values())


def test_a_network_of_timm_with_a_loss():
    import timm

    model = timm.create_model("test_resnet", num_classes=3).train()
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    groups = find_groups(model, x, trial=False).groups
    for name in sorted(CRITERIA):
        criterion = build_criterion(name, model, groups)
        if criterion.needs == "moments":
            continue  # tests/criteria/test_setwise.py
        if criterion.needs == "gradients":
            with pytest.raises(InputError, match="give loss="):
                calibrate(model, criterion, [x])
            calibrate(model, criterion, [(x, y)], lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]))
        elif criterion.needs == "features":
            calibrate(model, criterion, [x])
        scores = criterion.scores()
        assert all(scores[g.name].shape == (g.size,) and scores[g.name].isfinite().all() for g in groups)
    assert model.training


@pytest.mark.parametrize("loss", [lambda m, x: 1.0, lambda m, x: m(x), lambda m, x: m(x).mean().detach()])
def test_a_loss_that_is_none(loss):
    model = layer()
    criterion = build_criterion("taylor", model, find_groups(model, X).groups)
    with pytest.raises(InputError, match="tensor of one value"):
        calibrate(model, criterion, [X], loss)


def test_batches_without_annotations_are_said():
    model = segmentor("DeepLabV3PlusHead", "18", "BN")
    batch = [{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}]
    criterion = build_criterion("taylor", model, find_groups(model, batch, trial=False).groups)
    with pytest.raises(InputError, match="need annotations"):
        calibrate(model, criterion, [batch])


def test_the_slimming_penalty_adds_the_sign_of_the_scale():
    model = layer()
    model.norm.weight.grad = torch.ones(3)
    add_slimming_penalty(model, find_groups(model, X).groups, 0.5)
    assert model.norm.weight.grad.tolist() == [1.5, 0.5, 1.5]
    frozen = layer(gamma=None, norm=FrozenBatchNorm2d)
    add_slimming_penalty(frozen, find_groups(frozen, X).groups, 0.5)


def test_the_group_penalty_grows_as_a_channel_shrinks():
    model = layer(gamma=(0.0, 0.0, 2.0))
    model.head.weight.data = torch.tensor([[0.0, 0, 1], [0, 0, 0]])[:, :, None, None]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # squared norms 9, 16 and 4 + 1: strengths 2^(3 * (16 - 9) / 11), 1 and 2^3
    add_group_penalty(model, find_groups(model, X).groups, 0.5, 3.0)
    assert model.norm.weight.grad.tolist() == pytest.approx([0, 0, 0.5 * 8 * 2])
    assert model.layer.weight.grad.flatten().tolist() == pytest.approx(
        [0.5 * 2 ** (21 / 11) * 3, 0, 0, 0, 0.5 * 4, 0, 0, 0, 0]
    )
    assert model.head.weight.grad.flatten().tolist() == pytest.approx([0, 0, 0.5 * 8, 0, 0, 0])
    assert not model.norm.bias.grad.any()


def test_a_group_of_equals_is_penalised_alike():
    model = build(NETWORKS[8])  # transposed and grouped
    for parameter in model.parameters():
        parameter.data.fill_(1)
        parameter.grad = torch.zeros_like(parameter)
    add_group_penalty(model, find_groups(model, torch.randn(1, 3, 16, 16)).groups, 0.5, 4.0)
    assert set(model.up.weight.grad.flatten().tolist()) == {1.0}  # once for what makes it, once for what reads it


def loss_of(model, batch):
    return model(batch).square().mean()


def joint(model, batches, **options):
    criterion = build_criterion("sirfp_joint", model, find_groups(model, X).groups, per_position=False, **options)
    calibrate(model, criterion, batches, loss_of)
    return criterion


@pytest.mark.parametrize("unread", [1, 3])
def test_importance_decides_which_of_two_equal_channels_stays(unread):
    # channels 1 and 3 are one map, 0 and 2 are others; of 1 and 3 only one is read
    model = layer(((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0, 1.0, 0)), gamma=None)
    weight = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1]])
    weight[:, unread] = 0
    model.head.weight.data = weight[:, :, None, None]
    alone, both = joint(model, [X], importance_weight=0.0), joint(model, [X])
    assert alone.scores()["layer"].argmin() in (1, 3) and both.scores()["layer"].argmin() == unread
    redundancy = build_criterion("sirfp", model, alone.groups, per_position=False)
    calibrate(model, redundancy, [X])
    torch.testing.assert_close(alone.scores()["layer"], redundancy.scores()["layer"])


@pytest.mark.parametrize("importance", ["taylor", "dcfp"])
def test_at_weight_one_importance_and_redundancy_have_one_mean(importance):
    model, options = build(NETWORKS[0]), {"importance": importance, "importance_weight": 1.0}
    criterion = build_criterion("sirfp_joint", model, find_groups(model, X).groups, **options)
    calibrate(model, criterion, [X], loss_of)
    sums = []
    for group in criterion.groups:
        sums.append(-edge_weights(criterion.matrix(group)).sum(1))
    torch.testing.assert_close(torch.cat(list(criterion.vertices().values())).mean(), torch.cat(sums).mean())
    again = build_criterion("sirfp_joint", model, criterion.groups, **options)
    again.load_state_dict(criterion.state_dict())
    assert all(torch.equal(score, again.scores()[n]) for n, score in criterion.scores().items())


def test_the_joint_choice_is_held_against_the_exact_clique():
    model = build(NETWORKS[0])
    criterion = build_criterion("sirfp_joint", model, find_groups(model, X).groups)
    calibrate(model, criterion, [X], loss_of)
    scores, vertices = criterion.scores(), criterion.vertices()
    for group in criterion.groups:
        edges, keep = edge_weights(criterion.matrix(group)), group.size // 2
        best, most = exact(edges, keep, vertices[group.name])
        greedy = value(edges, scores[group.name].topk(keep).indices, vertices[group.name])
        least = value(edges, scores[group.name].topk(keep, largest=False).indices, vertices[group.name])
        assert most >= greedy - 1e-6 and most - greedy <= 0.05 * (most - least)
