"""A correction never makes a bias that training cannot change any more.

After a few steps at a high learning rate, running statistics of norms can be so far off that a network's outputs in
evaluation mode are of the order of 1e10, while training mode is sound.
"""

import copy

import pytest
import torch
from torch import nn

import sirfp

FAR = 1e10


class Net(nn.Module):
    """Two norms, the first of which has a running mean that is far off; the head reads what the second layer makes."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.head = head

    def forward(self, x):
        x = self.body(x)
        return self.head(x if isinstance(self.head, nn.Conv2d) else x.mean((2, 3)))


def linear():
    return nn.Linear(16, 4)


def linear_without_bias():
    return nn.Linear(16, 4, bias=False)


def convolution():
    return nn.Conv2d(16, 4, 3, padding=1)


def build(head, far=FAR) -> nn.Module:
    torch.manual_seed(0)
    model = Net(head())
    with torch.no_grad():
        model.body[1].running_mean.fill_(-far)
        model.body[1].bias.uniform_(0.5, 1)
        model.body[1].weight.uniform_(0.5, 1)
    return model


def steps(model, count=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(count):
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss = model.train()(images).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("calibrated", [False, True], ids=["bias compensation", "refit"])
@pytest.mark.parametrize("head", [linear, linear_without_bias, convolution])
def test_a_cut_network_trains_on(head, calibrated):
    model = build(head)
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    sirfp.prune(model, images[:1], "magnitude", keep_flops=0.5, calibration=images.split(8) if calibrated else None)
    before = [p.detach().clone() for p in model.parameters()]
    assert steps(model) < 100
    still = [n for (n, p), old in zip(model.named_parameters(), before, strict=True) if torch.equal(p, old)]
    assert not [n for n in still if n != "body.0.bias"], still  # the norm takes the first bias away again


@pytest.mark.parametrize("head", [linear, linear_without_bias, convolution])
def test_large_constants_that_leave_room_are_still_corrected(head):
    dense, x = build(head, far=1e3), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    calibration = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(6)).split(8)
    errors = []
    for batches in (None, calibration):
        model = copy.deepcopy(dense)
        sirfp.prune(model, x[:1], "magnitude", 0.5, batches, bias_correction=False)
        with torch.no_grad():
            errors.append(float((model.eval()(x) - dense.eval()(x)).square().mean()))
    assert errors[1] < 0.01 * errors[0]
