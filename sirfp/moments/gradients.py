"""Takes the second moments of gradients at layers' outputs: how much each direction of an output matters to the result.

With `g` the gradient of one image's part of a score at one position of a layer's output, a small change `d` of the
output at this position changes the divergence from the dense network by `d' G d / 2`, to second order, where
`G = E[g g']`. The score's gradients sample the Hessian of the divergence (`sirfp.network.divergence_terms`). Gradients
of different positions are taken as independent, as in K-FAC for convolutions (Grosse and Martens, A Kronecker-factored
Approximate Fisher Matrix for Convolution Layers, ICML 2016, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .taking import ROWS

Score = Callable[[nn.Module, Any], tuple[torch.Tensor, int]]
"""`score(model, batch)` returns a scalar, a sum over images, and the number of images."""


def take_gradients(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Any],
    score: Score,
    after: Callable[[], object] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Runs batches forward and backward and sums up the second moments of the gradients at layers' outputs.

    Args:
        model: the model; it runs in its present mode, with gradients.
        names: names of the layers' weights; layers are ungrouped convolutions or linear layers.
        batches: the inputs of each call.
        score: computes the scalar whose gradients are taken.
        after: called after each backward pass, while the parameters have the batch's gradients.

    Returns:
        {weight's name: (O, O) in float64}, the sum over positions of `g g'`, its mean over the images of all processes.
        Layers without gradients, or with NaN or infinite ones only, are left out.
    """
    sums: dict[str, torch.Tensor] = {}
    images = 0
    with ExitStack() as handles:
        for name in names:
            module: Any = model.get_submodule(name.rpartition(".")[0])
            outputs = module.weight.shape[0]
            sums[name] = torch.zeros(outputs, outputs, dtype=torch.float64, device=module.weight.device)
            handle = module.register_forward_hook(_watch(sums[name], 1 - module.weight.dim()))
            handles.callback(handle.remove)
        for batch in batches:
            model.zero_grad(set_to_none=True)
            value, count = score(model, batch)
            value.backward()
            images += count
            after()
    total = torch.tensor(float(images), dtype=torch.float64)
    if dist.is_available() and dist.is_initialized():
        device = next(iter(sums.values())).device if sums else total.device
        total = total.to(device)
        for each in (total, *sums.values()):
            dist.all_reduce(each)
    return {name: taken / total.to(taken.device) for name, taken in sums.items() if taken.diagonal().sum() > 0}


def _watch(total: torch.Tensor, channels: int) -> Callable:
    """Returns a forward hook that adds the second moments of the gradient at a layer's output to `total`.

    Args:
        total: the sum, changed in place.
        channels: the channel dimension of the output, counted from the end.
    """
    calls = 0

    def add(grad: torch.Tensor) -> None:
        nonlocal calls
        with torch.autocast(grad.device.type, enabled=False):
            rows = grad.detach().movedim(channels, -1).reshape(-1, len(total))
            step = -(-len(rows) // ROWS) or 1
            chosen = rows[calls % step :: step].float()
            scale = len(rows) / max(1, len(chosen))
            peak = chosen.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)  # squares of small gradients are 0
            chosen = chosen / peak
            product = (chosen.T @ chosen).double() * (peak.double().square() * scale)
            total.add_(torch.where(product.isfinite().all(), product, 0))
        calls += 1

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(add)

    return hook
