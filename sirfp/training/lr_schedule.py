"""The learning rate and weight decay of a run with prunings, phase by phase (docs/method.md, section 4)."""

from __future__ import annotations

import torch

from ..budget.target import Target
from .schedule import Schedule


class PhasedPolyLR(torch.optim.lr_scheduler.LRScheduler):
    """Warm-up and polynomial decay to zero in each phase: dense training, every recovery, fine-tuning.

    The paper's recipes train, recover and fine-tune in runs of their own, each with a whole schedule; this is
    the same in one run, weight decay included, which the recipes raise after the first pruning. It depends on nothing
    but the iteration, so a resumed run goes on as it was.

    Args:
        optimizer: its groups' rates and weight decays are multiplied.
        lengths: iterations of each phase.
        factors: what the base rate is multiplied with in each phase.
        decays: what weight decay is multiplied with in each phase; by nothing by default.
        power: of the decay; 0.9 in the paper.
        warmup: iterations of linear warm-up in each phase, at most a quarter of it.
        warmup_factor: where the warm-up starts.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lengths: tuple[int, ...],
        factors: tuple[float, ...],
        decays: tuple[float, ...] = (),
        power: float = 0.9,
        warmup: int = 0,
        warmup_factor: float = 0.001,
    ):
        phases = zip(lengths, factors, decays or (1.0,) * len(lengths), strict=True)
        self.phases = [phase for phase in phases if phase[0] > 0]
        self.base_decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        self.power, self.warmup, self.warmup_factor = power, warmup, warmup_factor
        super().__init__(optimizer)

    @classmethod
    def from_config(cls, cfg, optimizer: torch.optim.Optimizer) -> PhasedPolyLR:
        """One phase without pruning, else those of the schedule, SIRFP's factors after the first pruning."""
        lengths, factors, decays = (cfg.SOLVER.MAX_ITER,), (1.0,), (1.0,)
        if Target.from_config(cfg).share < 1 and cfg.SIRFP.HOOKS:
            schedule = Schedule.from_config(cfg)
            lengths = schedule.lengths
            trained = cfg.SIRFP.START_ITER > 0  # else the run starts from a trained network
            factors = (1.0 if trained else cfg.SIRFP.LR_FACTOR, *[cfg.SIRFP.LR_FACTOR] * (len(lengths) - 1))
            decays = (1.0, *[cfg.SIRFP.WEIGHT_DECAY_FACTOR] * (len(lengths) - 1))
        return cls(
            optimizer,
            lengths,
            factors,
            decays,
            power=cfg.SOLVER.POLY_LR_POWER,
            warmup=cfg.SOLVER.WARMUP_ITERS,
            warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        )

    def multiplier(self, iteration: int) -> float:
        """What the base rates are multiplied with in an iteration (from 0)."""
        length, factor, _, iteration = self._phase(iteration)
        if iteration >= length:
            return 0.0
        warmup = min(self.warmup, length // 4)
        ramp = 1.0
        if iteration < warmup:
            ramp = self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup
        return factor * ramp * (1 - iteration / length) ** self.power

    def _phase(self, iteration: int) -> tuple[int, float, float, int]:
        """The phase of an iteration, and how many of its own lie before it: in the last phase also after its end."""
        for phase in self.phases[:-1]:
            if iteration < phase[0]:
                return *phase, iteration
            iteration -= phase[0]
        return *self.phases[-1], iteration

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates and the weight decays of the next iteration."""
        super().step(epoch)
        decay = self._phase(self.last_epoch)[2]
        for group, base in zip(self.optimizer.param_groups, self.base_decays, strict=True):
            group["weight_decay"] = base * decay

    def get_lr(self) -> list[float]:
        return [base * self.multiplier(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict:
        """The iteration alone: the phases come from the config."""
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}
