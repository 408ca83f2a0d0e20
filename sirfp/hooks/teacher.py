"""The trainer hook of distillation: the network before the first cut teaches the pruned one in the same run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine.hooks import HookBase
from torch import nn

from ..checkpoint import restore
from ..checkpoint.dense import fill, read_weights
from ..checkpoint.pruned import read_safetensors
from ..errors import InputError
from ..network.channels_last import use_channels_last
from ..processes import average_norms, world_size
from ..structure.plan import PruningPlan
from ..surgery.cut import apply
from ..training.distillation import distillation_for, noted
from ..training.schedule import Schedule
from ..training.sync_norm import replace_sync_norms
from .registry import session, unwrapped

logger = logging.getLogger(__name__)


class Teach(HookBase):
    """Adds the losses of distillation to those of the task.

    The teacher is the network just before the first cut of this run, or that of the file MODEL.TEACHER.WEIGHTS, with
    which distillation begins at the first iteration. It is frozen, in evaluation mode, and runs with the precision of
    the training step. Checkpoints hold its weights, so that a resumed run goes on with the same teacher.

    `SIRFP.HOOKS` does not name this hook: MODEL.TEACHER.WEIGHT adds it, before all others.
    """

    def __init__(self, cfg: CfgNode):
        self.node, self.schedule = cfg.MODEL.TEACHER, Schedule.from_config(cfg)
        self.teacher: nn.Module | None = None
        self.plan: PruningPlan | None = None
        self.task_losses: Any = None

    def before_train(self) -> None:
        self.distillation = distillation_for(unwrapped(self.trainer.model), self.node.TEMPERATURE)
        if self.node.WEIGHTS:
            self._read(self.node.WEIGHTS)
        elif self.teacher is None and session(self.trainer).steps:
            self._read_earlier()
        if self.task_losses is None:
            self.task_losses = self.trainer._trainer.losses
            self.trainer._trainer.losses = self.losses

    def after_step(self) -> None:
        """Copies the network before it is cut for the first time."""
        if self.teacher is not None or self.trainer.iter + 1 != self.schedule.iterations[0]:
            return
        model = unwrapped(self.trainer.model)
        average_norms(model)
        self._build(session(self.trainer).plan, model.state_dict())
        count = sum(p.numel() for p in model.parameters())
        logger.info("The network before the first cut is the teacher from now on: %.2f million parameters", count / 1e6)

    def losses(self, model: nn.Module, data: Any) -> dict[str, torch.Tensor]:
        """Computes the task's losses and, with a teacher, those of distillation."""
        if self.teacher is None:
            return self.task_losses(model, data)
        with noted(self.distillation.modules(unwrapped(model))) as calls:
            losses = self.task_losses(model, data)
        weight, taught = self.node.WEIGHT, self.distillation.losses(self.teacher, calls)
        own = 1 - weight if self.distillation.share else 1.0
        return {k: own * loss for k, loss in losses.items()} | {k: weight * loss for k, loss in taught.items()}

    def state_dict(self) -> dict[str, Any]:
        if self.teacher is None or self.node.WEIGHTS:
            return {}
        return {"weights": self.teacher.state_dict(), "plan": self.plan.to_json() if self.plan else ""}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._build(PruningPlan.from_json(state["plan"]) if state["plan"] else None, state["weights"])

    def _new(self) -> nn.Module:
        """A network with new weights; the state of the random number generators stays as it is."""
        device = next(unwrapped(self.trainer.model).parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return self.trainer.build_model(self.trainer.cfg)

    def _build(self, plan: PruningPlan | None, weights: dict[str, torch.Tensor]) -> None:
        """Builds the teacher by a plan, which is None for a dense network, and its weights {name: tensor}."""
        model = self._new()
        if plan is not None:
            apply(model, plan)
        model.load_state_dict(weights)
        self.plan = plan
        self._freeze(model)

    def _read(self, file: str) -> None:
        """Reads the teacher from a file of a dense or pruned network."""
        model = self._new()
        if file.endswith(".safetensors"):
            self.plan, state = read_safetensors(file)
            restore(model, self.plan, state, file)
        else:
            fill(model, read_weights(file), file)
        self._freeze(model)

    def _read_earlier(self) -> None:
        """Reads the teacher of a run whose checkpoints do not hold it, from the file that the hook Report wrote."""
        names = ("dense.safetensors", "start.safetensors")
        found = [path for name in names if (path := Path(self.trainer.cfg.OUTPUT_DIR) / name).is_file()]
        if not found:
            raise InputError(
                "MODEL.TEACHER: the checkpoint was written by a run without a teacher, after its first cut; name the "
                "dense network's file in MODEL.TEACHER.WEIGHTS, or set MODEL.TEACHER.WEIGHT to 0"
            )
        self._read(str(found[0]))

    def _freeze(self, model: nn.Module) -> None:
        if world_size() > 1 and not next(model.parameters()).is_cuda:
            replace_sync_norms(model)
        self.teacher = use_channels_last(model).requires_grad_(False).eval()


def teachers(cfg: CfgNode) -> list[HookBase]:
    """Returns the hook of distillation, if MODEL.TEACHER.WEIGHT is not 0."""
    return [Teach(cfg)] if cfg.MODEL.TEACHER.WEIGHT else []
