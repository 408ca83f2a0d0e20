"""Synchronised batch norm for CPUs; PyTorch's `SyncBatchNorm` supports only GPUs."""

from __future__ import annotations

import torch
from fvcore.nn.distributed import differentiable_all_reduce
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from ..processes import world_size


class SyncNorm(nn.BatchNorm2d):  # a subclass of PyTorch's norm, so that other code recognises it as a norm
    """PyTorch's `SyncBatchNorm` for any device: normalises over the batches of all processes; sizes may differ."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises (N, C, ...). In training mode, mean and variance are those of the batches of all processes."""
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
            self._update_statistics(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale.view(shape)).to(x.dtype)
        return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Updates the running statistics with a batch's mean and variance, each (C,)."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class SyncNormAct(SyncNorm):
    """timm's `SyncBatchNormAct` for any device: with dropout and activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises (N, C, ...), then applies dropout and activation."""
        x = super().forward(x)
        for name in ("drop", "act"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {nn.SyncBatchNorm: SyncNorm, SyncBatchNormAct: SyncNormAct}


def replace_sync_norms(model: nn.Module) -> nn.Module:
    """Replaces a model's synchronised norms by norms for any device, in place; parameters and names do not change."""
    for module in model.modules():
        module.__class__ = _REPLACEMENTS.get(type(module), type(module))
    return model
