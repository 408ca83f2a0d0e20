"""Times gradients of depthwise convolutions: oneDNN's in bfloat16, sirfp's in float32 (`sirfp.training.depthwise`).

    python benchmarks/depthwise.py [--threads N] [--repeats N]

Layers of EfficientNet-Lite0 at output stride 16, batch 8, 192 x 256; medians of milliseconds for one backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from subjects import machine
from torch import nn

from sirfp.training.depthwise import DepthwiseGradients

LAYERS = [
    # channels, height, width, kernel, stride, dilation
    (32, 96, 128, 3, 1, 1),
    (96, 96, 128, 3, 2, 1),
    (144, 48, 64, 5, 2, 1),
    (240, 24, 32, 5, 1, 1),
    (672, 12, 16, 5, 1, 1),
    (1152, 12, 16, 5, 1, 2),
    (1152, 12, 16, 3, 1, 2),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine())
    print("| layer | bfloat16, ms | gradients in float32, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for channels, height, width, kernel, stride, dilation in LAYERS:
        layer = nn.Conv2d(channels, channels, kernel, stride, dilation * (kernel // 2), dilation, channels, bias=False)
        x = torch.randn(8, channels, height, width).to(memory_format=torch.channels_last).requires_grad_()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.repeats):
            for ours, found in enumerate(times):  # in turns, because other load on the machine varies
                found.append(backward(layer, x, bool(ours)))
        theirs, ours = (statistics.median(found[1:] or found) for found in times)
        name = f"{channels} at {height} x {width}, {kernel} x {kernel}, stride {stride}, dilation {dilation}"
        print(f"| {name} | {theirs * 1e3:.1f} | {ours * 1e3:.1f} | {theirs / ours:.1f} |", flush=True)
    return 0


def backward(layer: nn.Module, x: torch.Tensor, ours: bool) -> float:
    """Seconds of one backward pass."""
    with torch.autocast("cpu", torch.bfloat16), DepthwiseGradients() if ours else nullcontext():
        y = layer(x)
    grad = torch.ones_like(y)
    start = time.perf_counter()
    torch.autograd.grad(y, [x, layer.weight], grad)
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
