"""Trains layers that oneDNN's fault would reach and prints the worst relative error of a gradient, against float64.

    MALLOC_CHECK_=3 LD_PRELOAD=... ONEDNN_MAX_CPU_ISA=AVX2 python strided_training.py THREADS [--detectron2]

With `--detectron2`, whose import takes longer than all else, a network of Detectron2's layers is tried too.
A forked process trains `bare`, a layer as PyTorch runs it, which may crash or hang; it has `SECONDS` of processor time
and `WAIT` seconds. Its exit status is printed. Then each way in which a cut network gets into a training loop is tried.
The name of each is printed before it is tried, so that a crash has a name.
"""

from __future__ import annotations

import copy
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import torch
from small_networks import Strided
from torch import nn

import sirfp
from sirfp.network.channels_last import use_channels_last
from sirfp.network.strided_pointwise import guard, is_guarded

SIZE, SECONDS, WAIT = 64, 20, 120


def worst(model: nn.Module, channels: int = 3, steps: int = 5) -> float:
    """The worst relative error of a gradient over a few steps of SGD on channels-last images."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = 0.0
    for _ in range(steps):
        images = torch.randn(4, channels, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        exact = copy.deepcopy(model).double()
        for module in exact.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
        exact(images.double()).square().mean().backward()
        optimizer.zero_grad()
        model(images).square().mean().backward()
        for (name, mine), true in zip(model.named_parameters(), exact.parameters(), strict=True):
            assert mine.grad is not None, name
            found = max(found, float((mine.grad.double() - true.grad).norm() / true.grad.norm().clamp_min(1e-9)))
        optimizer.step()
    return found


def pruned(kind: type[nn.Module] = nn.Conv2d) -> tuple[nn.Module, sirfp.PruningPlan]:
    """A network that a cut left with a strided 1 x 1 convolution of few inputs, in training mode."""
    torch.manual_seed(0)
    model = Strided(kind).train()
    plan = sirfp.prune(model, torch.zeros(1, 3, SIZE, SIZE), "magnitude", 0.3)
    assert is_guarded(model.short) and model.short.weight.shape[1] < 8
    return model, plan


def dense() -> nn.Module:
    """A network that has such a convolution from the start, in training mode."""
    torch.manual_seed(0)
    return Strided(widths=(4, 8)).train()


def loaded() -> nn.Module:
    """That network from a file, laid out as our trainer does."""
    with tempfile.TemporaryDirectory() as folder:
        sirfp.save(Path(folder) / "small.safetensors", *pruned())
        model = Strided().train()
        sirfp.load(Path(folder) / "small.safetensors", model)
    return use_channels_last(model)


def layer(inputs: int, **options) -> nn.Module:
    """One layer with 8 outputs."""
    torch.manual_seed(0)
    return nn.Conv2d(inputs, 8, 1, 2, **options).to(memory_format=torch.channels_last)


def bare(threads: int) -> None:
    """Trains the bare layer in a process of its own; imports take longer than that, so it is forked."""
    child = os.fork()
    if child:
        print("bare ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(WAIT)  # for a process that waits for itself
    torch.set_num_threads(threads)
    print(f"bare error {worst(layer(4), 4):.2e}", flush=True)
    os._exit(0)


def main() -> None:
    threads = int(sys.argv[1])
    bare(threads)
    torch.set_num_threads(threads)
    tried = {
        "4 inputs": lambda: worst(guard(layer(4)), 4),
        "12 inputs": lambda: worst(guard(layer(12)), 12),
        "7 inputs with padding": lambda: worst(guard(layer(7, padding=1)), 7),
        "a dense network stored channels-last for training": lambda: worst(use_channels_last(dense())),
        "pruned": lambda: worst(pruned()[0].to(memory_format=torch.channels_last)),
        "loaded": lambda: worst(loaded()),
    }
    if "--detectron2" in sys.argv:
        from detectron2.layers import Conv2d

        tried["pruned, of Detectron2's layers"] = lambda: worst(use_channels_last(pruned(Conv2d)[0]))
    for name, run in tried.items():
        print(name, flush=True)
        print(f"error {run():.2e}", flush=True)


if __name__ == "__main__":
    main()
