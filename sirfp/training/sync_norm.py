"""Synchronised batch norm on processors: PyTorch's `SyncBatchNorm` knows GPUs only."""

from __future__ import annotations

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from ..processes import world_size


class SyncNorm(nn.BatchNorm2d):  # which optimizers and others know as a norm
    """Batch norm over the batches of all processes, which may differ in size; as PyTorch's, but for any device."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises (N, C, ...), in training by the mean and the variance of all processes' batches."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        wide = x.float()
        total = differentiable_all_reduce(torch.cat([wide.sum(dims), wide.new_tensor([x.numel() / x.shape[1]])]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        variance = differentiable_all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale.view(shape)).to(x.dtype)
        return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class SyncNormAct(SyncNorm):
    """timm's, with dropout and activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises, drops, activates."""
        x = super().forward(x)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


_STAND_INS = {nn.SyncBatchNorm: SyncNorm, SyncBatchNormAct: SyncNormAct}


def replace_sync_norms(model: nn.Module) -> nn.Module:
    """Has a model's synchronised norms work without GPUs, in place; weights, buffers and their names stay."""
    for module in model.modules():
        module.__class__ = _STAND_INS.get(type(module), type(module))
    return model
