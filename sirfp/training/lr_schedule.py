"""Sets learning rate and weight decay in each phase of a run with prunings (docs/method.md, section 4)."""

from __future__ import annotations

import torch

from ..budget.target import Target
from .schedule import Schedule


class PhasedPolyLR(torch.optim.lr_scheduler.LRScheduler):
    """Warm-up and polynomial decay to zero in each phase: dense training, every recovery, fine-tuning.

    The paper's recipes train, recover and fine-tune in separate runs with separate schedules. This class does the same
    in one run. Weight decay has a factor for each phase too, since the recipes raise it after the first pruning.
    Learning rate and weight decay depend only on the iteration, so that a resumed run continues unchanged.

    Args:
        optimizer: the optimizer; the learning rate and weight decay of each of its groups are multiplied.
        lengths: the number of iterations of each phase.
        factors: the factor of the base learning rate in each phase.
        decays: the factor of weight decay in each phase; 1 by default.
        power: the exponent of the polynomial decay; 0.9 in the paper.
        warmup: iterations of linear warm-up in each phase; shortened to at most a quarter of the phase.
        warmup_factor: the factor of the learning rate at the start of warm-up.
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
        """Builds the schedule from a config: a single phase without pruning, else the phases of `Schedule`.

        After the first pruning the factors are SIRFP.LR_FACTOR and SIRFP.WEIGHT_DECAY_FACTOR.
        """
        lengths: tuple[int, ...] = (cfg.SOLVER.MAX_ITER,)
        factors: tuple[float, ...] = (1.0,)
        decays: tuple[float, ...] = (1.0,)
        if (Target.from_config(cfg).share < 1 or cfg.SIRFP.KEEP) and cfg.SIRFP.HOOKS:
            schedule = Schedule.from_config(cfg)
            lengths = schedule.lengths
            trained = cfg.SIRFP.START_ITER > 0  # False: the run starts from a trained network
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
        """Returns the factor of the base learning rates in an iteration (counted from 0)."""
        length, factor, _, iteration = self._phase(iteration)
        if iteration >= length:
            return 0.0
        warmup = min(self.warmup, length // 4)
        ramp = 1.0
        if iteration < warmup:
            ramp = self.warmup_factor + (1 - self.warmup_factor) * iteration / warmup
        return factor * ramp * (1 - iteration / length) ** self.power

    def _phase(self, iteration: int) -> tuple[int, float, float, int]:
        """Returns the phase of an iteration, and the number of the iteration within this phase.

        Iterations after the end of the run belong to the last phase.
        """
        for phase in self.phases[:-1]:
            if iteration < phase[0]:
                return *phase, iteration
            iteration -= phase[0]
        return *self.phases[-1], iteration

    def step(self, epoch: int | None = None) -> None:
        """Sets the learning rates and weight decays of the next iteration."""
        super().step(epoch)
        decay = self._phase(self.last_epoch)[2]
        for group, base in zip(self.optimizer.param_groups, self.base_decays, strict=True):
            group["weight_decay"] = base * decay

    def get_lr(self) -> list[float | torch.Tensor]:
        return [base * self.multiplier(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict:
        """Returns the iteration and the base learning rates; the phases are read from the config."""
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}
