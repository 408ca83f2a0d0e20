"""Times training steps of a pruned ResNet-18 on a CPU with and without `sirfp.network.strided_pointwise.guard`.

    python benchmarks/strided_pointwise_cost.py [--threads N] [--repeats N]

The unguarded network is measured in a setting without the fault: with AVX-512 and maps of 32 x 32, which are right in
`benchmarks/strided_pointwise_sweep.py`. Guarded and unguarded steps take turns; times are medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import timm
import torch
from subjects import machine
from torch import nn

import sirfp
from sirfp.network.channels_last import use_channels_last
from sirfp.network.strided_pointwise import is_guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise SystemExit("this needs AVX-512: on other processors the unguarded network may crash")
    torch.set_num_threads(args.threads)
    images = torch.randn(8, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    print(machine())
    print("| ResNet-18 | guarded layers | guarded, ms | unguarded, ms | ratio |\n| --- | ---: | ---: | ---: | ---: |")
    for name, keep in (("dense", 1.0), ("half of the FLOPs", 0.5), ("15% of the FLOPs", 0.15)):
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=10)
        if keep < 1:
            sirfp.prune(model, images[:1], "magnitude", keep)
        model = use_channels_last(model).train()
        guarded, unguarded = (1e3 * seconds for seconds in compared(step, model, images, args.repeats))
        count = sum(map(is_guarded, model.modules()))
        print(f"| {name} | {count} | {guarded:.1f} | {unguarded:.1f} | {guarded / unguarded:.2f} |", flush=True)
    layer = use_channels_last(nn.Conv2d(7, 64, 1, 2, bias=False))
    maps = torch.randn(8, 7, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    print("\n| 7 -> 64 channels, 8 maps of 32 x 32 | guarded, us | unguarded, us |\n| --- | ---: | ---: |")
    for name, work in (("forward and backward", step), ("forward without gradients", evaluate)):
        guarded, unguarded = (1e6 * seconds for seconds in compared(work, layer, maps, 100 * args.repeats))
        print(f"| {name} | {guarded:.0f} | {unguarded:.0f} |", flush=True)
    return 0


def compared(
    work: Callable[[nn.Module, torch.Tensor], float], model: nn.Module, inputs: torch.Tensor, repeats: int
) -> tuple[float, float]:
    """Median seconds of some work with a guarded model, and with a copy of it that is not guarded."""
    unguarded = copy.deepcopy(model)
    for module in unguarded.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for network, spent in zip((model, unguarded), times, strict=True):
            spent.append(work(network, inputs))
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


@torch.no_grad()
def evaluate(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one forward pass without gradients."""
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def step(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    model(images).square().mean().backward()
    model.zero_grad()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
