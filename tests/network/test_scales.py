"""Where a module's code may compute a scale from a width: also outside its methods proper."""

import functools
import sys

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.network.scales import may_scale

HERE = sys.modules[__name__]
SIZES = {"attribute width": None}


def scaled(x, width):
    return x / width


def passed_on(method):
    @functools.wraps(method)
    def wrapper(*args):
        return method(*args)

    return wrapper


class Branch(nn.Module):
    """A branch of an effect that single precision hides beside a layer; `width` is a size in its code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.direct, self.width = nn.Linear(6, 24), nn.Linear(24, 5), nn.Linear(6, 5), 24

    def forward(self, x):
        h = self.a(x).relu().reshape(*x.shape[:2], self.width)
        return self.direct(x) + 1e-7 * self.b(self.times(h))

    def times(self, h):
        return h


class ByProperty(Branch):
    @property
    def scale(self):
        return self.width**-0.5

    def times(self, h):
        return h * self.scale


class ByStaticMethod(Branch):
    @staticmethod
    def scaled(h, width):
        return h / width

    def times(self, h):
        return self.scaled(h, self.width)


class ByDecorated(Branch):
    @passed_on
    def times(self, h):
        return h / self.width


class ByComprehension(Branch):
    def times(self, h):
        return torch.stack([part / self.width for part in h])


class ByFunctionOfAFile(Branch):
    def times(self, h):
        return HERE.scaled(h, self.width)


@pytest.mark.parametrize("kind", Branch.__subclasses__())
def test_a_scale_outside_of_methods_is_seen(kind):
    torch.manual_seed(0)
    model = kind().eval()
    assert may_scale(model, SIZES) and not may_scale(model, {})
    assert [group.name for group in find_groups(model, torch.randn(2, 10, 6))] == []


def test_no_scale_is_seen_where_there_is_none():
    torch.manual_seed(0)
    model = Branch().eval()
    assert not may_scale(model, SIZES)
    assert [group.name for group in find_groups(model, torch.randn(2, 10, 6))] == ["a"]
