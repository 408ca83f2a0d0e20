"""A training run of seconds on a tiny task, for tests; and a script that runs it in several processes and in trouble.

    python tests/tiny_run.py [--num-processes 2] OUTPUT_DIR folder

The environment variable TINY_FAULT, "kill:1:9", has process 1 meet a fault in iteration 9: "kill" is SIGKILL,
"interrupt" SIGINT, "wrong" an InputError, "crash" another exception, "freeze" silence.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from small_networks import Residual
from torch import nn

from sirfp import engine
from sirfp.config import load_config
from sirfp.data.stream import TrainingStream
from sirfp.errors import InputError
from sirfp.training.distillation import DISTILLATIONS, Distillation

HOOKS = "['Accumulate', 'Report', 'PruneSteps', 'Recover']"
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KEYS = {
    "MODEL.DEVICE": "cpu", "SOLVER.MAX_ITER": 20, "SOLVER.BASE_LR": 0.05, "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.LR_SCHEDULER_NAME": "PhasedPolyLR", "SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.IMS_PER_BATCH": 8,
    "SIRFP.HOOKS": HOOKS, "SIRFP.KEEP_FLOPS": 0.4, "SIRFP.STEPS": 2, "SIRFP.START_ITER": 8, "SIRFP.ACCUMULATE_ITERS": 5,
    "SIRFP.RECOVER_ITERS": 5, "TEST.BEST_METRIC": "", "SIRFP.RECOVER_NORM_ITERS": 0,
    "SIRFP.CRITERION": "sirfp_joint", "SIRFP.OPTIONS.STRIDE": 1, "SIRFP.CURVE_IMAGES": 4,
    "SIRFP.RECONSTRUCTION_ITERS": 0,
}  # fmt: skip


class Task(nn.Module):
    """The residual network, called as a trainer calls a model."""

    def __init__(self):
        super().__init__()
        self.backbone = Residual()

    def forward(self, x):
        y = self.backbone(x)
        return {"loss": F.mse_loss(y, x.mean((1,), keepdim=True).expand_as(y))} if self.training else y


@DISTILLATIONS.register("Task")
class TaskDistillation(Distillation):
    """Compares the maps of student and teacher."""

    def modules(self, student):
        return {"backbone": student.backbone}

    def losses(self, teacher, calls):
        ((inputs, output),) = calls["backbone"]
        with torch.no_grad():
            wanted = teacher.backbone(*inputs)
        return {"loss_teacher": F.mse_loss(output, wanted)}


def batches(seed, start):
    """Batch i is a function of i alone; this process's share of it."""
    for i in count(start):
        batch = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(i))
        yield batch[comm.get_rank() :: comm.get_world_size()]


class TaskTrainer(engine.Trainer):
    """Trains the task."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(7)
        return Task()

    @classmethod
    def build_train_loader(cls, cfg):
        return TrainingStream(batches, seed=0)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        before = model.training
        model.eval()
        with torch.no_grad():
            score = float(model(IMAGE).square().mean())
        model.train(before)
        return {"task": {"score": score}}

    def example_inputs(self):
        return IMAGE


def config(folder, *opts):
    """The run's config."""
    keys = {"OUTPUT_DIR": str(folder)} | KEYS
    return load_config("", [str(x) for pair in keys.items() for x in pair] + list(opts))


class SharedTrainer(TaskTrainer):
    """The same with synchronised norms; every process keeps what it saw in `process<rank>.pth`."""

    @classmethod
    def build_model(cls, cfg):
        return nn.SyncBatchNorm.convert_sync_batchnorm(super().build_model(cfg))

    def agree(self):
        super().agree()
        self.note()

    def note(self):
        """Saves the redundancies accumulated so far."""
        observer = getattr(self, "pruning", None) and self.pruning.observer
        averages = observer.criterion.averages if observer is not None else {}
        seen = {name: average.matrix() for name, average in averages.items() if average.steps}
        self.noted = [*getattr(self, "noted", []), seen]

    def run_step(self):
        kind, rank, iteration = (os.environ.get("TINY_FAULT") or "none:0:0").split(":")
        if self.iter == int(iteration) and comm.get_rank() == int(rank):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "interrupt":
                signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs that a script starts with & ignore it
                os.kill(os.getpid(), signal.SIGINT)
            if kind == "wrong":
                raise InputError(f"process {rank} has read something wrong")
            if kind == "crash":
                raise ValueError("a fault of the program")
            if kind == "freeze":
                time.sleep(600)
        super().run_step()

    def train(self):
        super().train()
        weights = self.checkpointer.model.state_dict()
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        file = Path(self.cfg.OUTPUT_DIR) / f"process{comm.get_rank()}.pth"
        torch.save({"weights": weights, "momenta": momenta, "seen": self.noted}, file)


def arguments(folder, *flags):
    """A command line of this script, without its name."""
    pairs = [str(x) for pair in KEYS.items() for x in pair]
    return [*flags, *pairs, "DATASETS.TRAIN", "('scenes_sem_seg_train',)", "OUTPUT_DIR", str(folder)]


def run(folder, *opts, resume=False, stop=None):
    """Runs a training; with `stop` it dies before that iteration's checkpoint could be written."""
    trainer = TaskTrainer(config(folder, *opts))
    if stop is not None:
        trainer.register_hooks([Stop(stop)])
        trainer._hooks.insert(0, trainer._hooks.pop())
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


class Stopped(Exception):
    """A run that was told to die."""


class Stop(engine.HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise Stopped


if __name__ == "__main__":
    at = sys.argv.index("OUTPUT_DIR")
    engine.run(SharedTrainer, None, arguments(sys.argv[at + 1], *sys.argv[1:at]))
