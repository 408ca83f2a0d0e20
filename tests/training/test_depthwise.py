"""Depthwise convolutions under autocast have the gradients that they have in float32, and nothing else changes."""

import pytest
import torch
from torch import nn

from sirfp.training.depthwise import DepthwiseGradients
from sirfp.training.step import MixedPrecisionTrainer

SHAPES = [
    # kernel, stride, padding, dilation
    (5, 1, 2, 1),
    (3, 2, 1, 1),
    (3, 1, 2, 2),
    (5, 2, (0, 1), 1),
]


def gradients(layer, x, precise=False, ours=False):
    """The output and the gradients of a sum with fixed weights, in float32 or under autocast."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
        if ours:
            with DepthwiseGradients():
                y = layer(x)
        else:
            y = layer(x)
    torch.manual_seed(1)
    (y.float() * torch.randn(y.shape)).sum().backward()
    return y, [x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_float32(kernel, stride, padding, dilation, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 12, kernel, stride, padding, dilation, groups=12, bias=bias)
    x = torch.randn(2, 12, 16, 20).to(memory_format=torch.channels_last)
    _, wanted = gradients(layer, x, precise=True)
    y, found = gradients(layer, x, ours=True)
    assert y.dtype is torch.bfloat16
    for mine, exact in zip(found, wanted, strict=True):
        assert mine.dtype is exact.dtype
        assert (mine - exact).norm() / exact.norm() < 0.01  # bfloat16 has 8 bits


def test_it_is_used_where_it_says_and_nowhere_else():
    x = torch.randn(2, 8, 8, 8)
    for layer, taken in (
        (nn.Conv2d(8, 8, 5, groups=8), True),
        (nn.Conv2d(8, 8, 3, dilation=2, groups=8), True),
        (nn.Conv2d(8, 8, 3, groups=8), False),
        (nn.Conv2d(8, 8, 5, groups=4), False),
        (nn.Conv2d(8, 16, 5, groups=8), False),
        (nn.Conv2d(8, 8, 5, padding="same", groups=8), False),
        (nn.Conv2d(8, 8, 1), False),
    ):
        with torch.autocast("cpu", torch.bfloat16), DepthwiseGradients():
            y = layer(x)
        own = "Depthwise" in str(y.grad_fn) or any("Depthwise" in str(f) for f, _ in y.grad_fn.next_functions)
        assert own is taken, layer
    with DepthwiseGradients():
        assert "Depthwise" not in str(nn.Conv2d(8, 8, 5, groups=8, bias=False)(x).grad_fn)  # no autocast


def test_a_frozen_weight_has_no_gradient():
    layer = nn.Conv2d(8, 8, 5, groups=8, bias=False).requires_grad_(False)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), DepthwiseGradients():
        layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("precision", "grad", "modes"), [(None, True, 0), (torch.bfloat16, True, 1), (torch.bfloat16, False, 0)]
)
def test_only_gradients_in_bfloat16_pay_for_it(precision, grad, modes):
    model = nn.Conv2d(1, 1, 1)
    trainer = MixedPrecisionTrainer(model, [], torch.optim.SGD(model.parameters(), 0.1), precision, lambda: None)
    with torch.set_grad_enabled(grad), trainer.autocast():
        assert torch._C._len_torch_function_stack() == modes
