"""The learning rate of a run with prunings: polynomial decay that begins anew after each (METHOD section 4)."""

from __future__ import annotations

import torch

from .schedule import Schedule
from .target import Target


class PhasedPolyLR(torch.optim.lr_scheduler.LRScheduler):
    """Warm-up and polynomial decay to zero in each phase: dense training, every recovery, fine-tuning.

    The paper's recipes train, recover and fine-tune in runs of their own, each with a whole schedule; this is
    the same in one run. It depends on nothing but the iteration, so a resumed run goes on as it was.

    Args:
        optimizer: its groups' rates are multiplied.
        lengths: iterations of each phase.
        factors: what the base rate is multiplied with in each phase.
        power: of the decay; 0.9 in the paper.
        warmup: iterations of linear warm-up in each phase, at most a quarter of it.
        warmup_factor: where the warm-up starts.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lengths: tuple[int, ...],
        factors: tuple[float, ...],
        power: float = 0.9,
        warmup: int = 0,
        warmup_factor: float = 0.001,
    ):
        self.phases = [(n, f) for n, f in zip(lengths, factors, strict=True) if n > 0]
        self.power, self.warmup, self.warmup_factor = power, warmup, warmup_factor
        super().__init__(optimizer)

    @classmethod
    def from_config(cls, cfg, optimizer: torch.optim.Optimizer) -> PhasedPolyLR:
        """One phase without pruning, else those of the schedule, SIRFP.LR_FACTOR after the first pruning."""
        lengths, factors = (cfg.SOLVER.MAX_ITER,), (1.0,)
        if Target.from_config(cfg).share < 1 and cfg.SIRFP.HOOKS:
            schedule = Schedule.from_config(cfg)
            lengths = schedule.lengths
            trained = cfg.SIRFP.START_ITER > 0  # else the run starts from a trained network
            factors = (1.0 if trained else cfg.SIRFP.LR_FACTOR, *[cfg.SIRFP.LR_FACTOR] * (len(lengths) - 1))
        return cls(
            optimizer,
            lengths,
            factors,
            power=cfg.SOLVER.POLY_LR_POWER,
            warmup=cfg.SOLVER.WARMUP_ITERS,
            warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        )

    def multiplier(self, iteration: int) -> float:
        """What the base rates are multiplied with in an iteration (from 0)."""
        for length, factor in self.phases:
            if iteration < length:
                warmup = min(self.warmup, length // 4)
                ramp = 1.0
                if iteration < warmup:
                    ramp = self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup
                return factor * ramp * (1 - iteration / length) ** self.power
            iteration -= length
        return 0.0

    def get_lr(self) -> list[float]:
        return [base * self.multiplier(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict:
        """The iteration alone: the phases come from the config."""
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}
