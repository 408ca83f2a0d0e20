"""What a kernel reads: all taps in the order of the weight, zeros in the padding, also where timm or PyTorch pads."""

from __future__ import annotations

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from sirfp.moments.unfolding import axes_between, padded, spread, unfolded
from sirfp.tracing.taps import means_under_taps, shares

CASES = {
    "dilated beyond the map": (nn.Conv2d(5, 4, 3, padding=12, dilation=12), (8, 7)),
    "strided": (nn.Conv2d(5, 4, (3, 5), stride=(2, 3), padding=(1, 0)), (9, 11)),
    "same": (nn.Conv2d(5, 4, 4, padding="same", dilation=2), (6, 6)),
    "valid": (nn.Conv2d(5, 4, 3, padding="valid"), (6, 6)),
    "reflected": (nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect"), (4, 6)),
    "padded in forward": (Conv2dSame(5, 4, 3, stride=2), (6, 7)),
    "one dimension": (nn.Conv1d(5, 4, 3, padding=2, dilation=2), (3,)),
    "a volume": (nn.Conv3d(5, 4, 2, stride=2, padding=1), (3, 4, 5)),
}


@pytest.mark.parametrize("layer, size", CASES.values(), ids=CASES)
@torch.no_grad()
def test_weights_times_what_is_read_is_the_output(layer, size):
    x = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    inside = padded(layer, x)
    axes = axes_between(layer, inside, y)
    flat = inside.movedim(1, -1).reshape(-1, 5)
    rows = unfolded(flat, axes, torch.arange(y[:, 0].numel()))
    wanted = y.movedim(1, -1).reshape(-1, 4) - layer.bias
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T, wanted, atol=1e-5, rtol=1e-4)
    under = means_under_taps(inside.mean(0), axes)
    torch.testing.assert_close(under.flatten(), rows.mean(0), atol=1e-5, rtol=1e-4)
    ones = unfolded(torch.ones_like(flat), axes, torch.arange(y[:, 0].numel())).mean(0).view(5, -1)
    torch.testing.assert_close(shares(axes).float(), ones[0])
    torch.testing.assert_close(means_under_taps(torch.full((5,), 2.0), axes), 2 * ones)


def test_positions_are_spread_over_rows_and_columns():
    """With steps of 16, a map of 16 columns would give one column."""
    positions = spread(4096, 256, 0, torch.device("cpu"))
    assert len(positions) == 256 and len(positions.unique()) > 250
    assert torch.bincount(positions % 16, minlength=16).min() > 8 and positions.max() < 4096
    assert not torch.equal(positions, spread(4096, 256, 1, torch.device("cpu")))
    assert torch.equal(spread(5, 9, 3, torch.device("cpu")), torch.arange(5))
