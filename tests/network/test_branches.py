"""Branches that run only in training are cut with the network, and neither counted nor exported nor required."""

import json

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.checkpoint import load, read, save
from sirfp.checkpoint.dense import read_weights
from sirfp.errors import InputError
from sirfp.network.branches import training_only
from sirfp.prune import prune
from sirfp.structure.plan import PruningPlan
from sirfp.surgery import apply
from sirfp.training.checkpointer import Checkpointer


class Branch(nn.Sequential):
    training_only = True


class Network(nn.Module):
    """Two convolutions and a classifier; in training a second one reads the first convolution."""

    def __init__(self, branch: bool = True):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 2, 1)
        self.branch = Branch(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)) if branch else None

    def forward(self, x):
        inner = self.first(x).relu()
        out = self.last(self.second(inner).relu())
        return (out, self.branch(inner)) if self.training and self.branch is not None else out


X = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    model = Network()
    return model, prune(model, X, "magnitude", 0.5, partitions=())


def test_a_branch_is_cut_along_and_not_counted(pruned):
    torch.manual_seed(0)
    alone = Network(branch=False)
    dense = find_groups(alone, X)
    model, plan = pruned
    assert training_only(model) == plan.branches == ("branch",)
    assert (plan.flops[0], plan.params[0]) == (dense.flops(), dense.params())
    assert plan.params[1] == sum(p.numel() for n, p in model.named_parameters() if not n.startswith("branch."))
    assert model.branch[0].weight.shape[:2] == (6, len(plan.kept["first"])) and len(plan.kept["first"]) < 8
    assert model.train()(X)[1].shape[1] == 2
    plan = prune(alone, X, "magnitude", 0.5, partitions=())
    assert plan.kept == pruned[1].kept and plan.branches == ()


def test_a_file_lacks_the_branch_and_loads_with_and_without_one(pruned, tmp_path):
    model, plan = pruned
    file = tmp_path / "small.safetensors"
    save(file, model, plan)
    assert not any(name.startswith("branch") for name in read(file)[1])
    for branch in (True, False):
        other = Network(branch)
        assert load(file, other) == plan
        torch.testing.assert_close(other.eval()(X), model.eval()(X), rtol=0, atol=0)
        other.train()(X)
    checkpointer = Checkpointer(Network())
    with checkpointer.strictly():
        checkpointer.load(str(file))
    with pytest.raises(InputError, match="'first.weight' is missing"):
        load(file, nn.Sequential(nn.Conv2d(3, 8, 3)))


def test_a_training_checkpoint_of_a_dense_network_fills_one_without_the_branch(tmp_path):
    model = Network()
    Checkpointer(model, str(tmp_path)).save("dense")
    state = read_weights(tmp_path / "dense.pth")
    assert list(state) == list(Network(branch=False).state_dict())


def test_plans_of_before_have_no_branches(pruned):
    data = json.loads(pruned[1].to_json())
    assert PruningPlan.from_json(json.dumps(data)) == pruned[1]
    del data["branches"]
    assert PruningPlan.from_json(json.dumps(data)).branches == ()


def test_joined_plans_remember_branches(pruned):
    model, plan = pruned
    further = prune(model, X, "magnitude", 0.3, partitions=())
    other = Network()
    apply(other, plan.then(further))
    assert plan.then(further).branches == ("branch",)
    assert further == plan.then(further) and further.kept != plan.kept
    assert other.branch[0].weight.shape == model.branch[0].weight.shape
