"""Random scores: the baseline of every comparison."""

from __future__ import annotations

import zlib

import torch

from .registry import Criterion, register


@register("random")
class Random(Criterion):
    """Independent uniform scores; equal seeds and group names give equal scores."""

    def scores(self) -> dict[str, torch.Tensor]:
        result = {}
        for group in self.groups:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(group.name.encode()))
            result[group.name] = torch.rand(group.size, generator=generator)
        return result
