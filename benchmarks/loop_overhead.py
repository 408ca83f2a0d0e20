"""The time that sirfp's training loop (trainer, hooks, events) adds to a step of ResNet-18 in a plain PyTorch loop.

    python benchmarks/loop_overhead.py [--json] [--size 96] [--batch 32] [--precision float32] [--rounds 30]

Measured are the classification project's trainer with the hooks of its pruning configs, once between prunings and once
while statistics accumulate, and a plain loop with the same network, optimizer, schedule, loss and batch. Rounds
alternate. A round has as many steps as the default period of statistics, so that every accumulating round has one
update. Each round is compared with the mean of the plain rounds before and after it; the result is the median. Bound:
at most 3% of a step in both cases. Exit code 1 if it is not met.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage
from subjects import machine
from torch import nn
from torch.nn import functional as F

from sirfp.config import load_config
from sirfp.network.channels_last import use_channels_last

PROJECT = Path(__file__).resolve().parents[1] / "projects" / "classification"
FAR = 10**6  # an iteration that the benchmark does not reach


def main() -> int:
    period = load_config("").SIRFP.ACCUMULATE_PERIOD
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    batch = (torch.randn(args.batch, 3, args.size, args.size), torch.randint(0, 10, (args.batch,)))
    batch = (batch[0].contiguous(memory_format=torch.channels_last), batch[1])
    times: dict[str, list[float]] = {"bare": [], "loop": [], "accumulating": []}
    with tempfile.TemporaryDirectory() as folder, EventStorage(0) as storage, ExitStack() as closing:
        steps = {
            "bare": bare(batch, args),
            "loop": ours(batch, args, folder, storage, closing, accumulating=False),
            "accumulating": ours(batch, args, folder, storage, closing, accumulating=True),
        }
        for round_ in range(args.rounds + 2):
            for name, step in steps.items() if round_ <= args.rounds else [("bare", steps["bare"])]:
                start = time.perf_counter()
                for _ in range(period):
                    step()
                if round_:  # the first round is a warm-up
                    times[name].append((time.perf_counter() - start) / period)
    around = [(before + after) / 2 for before, after in itertools.pairwise(times["bare"])]
    added = {
        name: sorted(b / a - 1 for a, b in zip(around, times[name], strict=True))
        for name in ("loop", "accumulating")
    }
    result = {
        "step_s": {name: statistics.median(values) for name, values in times.items()},
        "added": {
            name: {"lowest": values[0], "median": statistics.median(values), "highest": values[-1]}
            for name, values in added.items()
        },
        "precision": args.precision,
        "machine": machine(),
    }
    result["within_bounds"] = all(values["median"] <= 0.03 for values in result["added"].values())
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"a bare step: {result['step_s']['bare']:.4f} s ({args.precision})")
        for name, values in result["added"].items():
            print(f"{name}: {values['median']:+.1%} (from {values['lowest']:+.1%} to {values['highest']:+.1%})")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


def config(args: argparse.Namespace, folder: str, accumulating: bool):
    """The digits' pruning config with this benchmark's own data, and with prunings that are never reached."""
    from classification import add_classification_config

    options = [
        "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", args.precision == "bfloat16", "SOLVER.MAX_ITER", 2 * FAR,
        "SIRFP.START_ITER", FAR, "SIRFP.ACCUMULATE_ITERS", FAR if accumulating else 1, "OUTPUT_DIR", folder,
        "SOLVER.CHECKPOINT_PERIOD", FAR, "INPUT.SIZE", args.size, "DATASETS.TEST", (),
    ]  # fmt: skip
    return load_config(PROJECT / "configs/scenes/resnet18_sirfp.yaml", options, add_classification_config)


def ours(
    batch: tuple,
    args: argparse.Namespace,
    folder: str,
    storage: EventStorage,
    closing: ExitStack,
    accumulating: bool,
) -> Callable:
    """A step of the project's trainer, as in `TrainerBase.train`."""
    from train_net import ClassificationTrainer

    class Trainer(ClassificationTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iter(lambda: batch, None)

    torch.manual_seed(0)
    trainer = Trainer(config(args, folder, accumulating))
    trainer.storage, trainer.iter = storage, 0
    trainer.before_train()
    for hook in trainer._hooks:
        if isinstance(hook, PeriodicWriter):
            closing.callback(hook.after_train)

    def step() -> None:
        trainer.before_step()
        trainer.run_step()
        trainer.after_step()
        trainer.iter += 1
        storage.step()

    return step


def bare(batch: tuple, args: argparse.Namespace) -> Callable:
    """A training step written without sirfp."""
    from classification import build_network, build_optimizer

    cfg = config(args, "", accumulating=False)
    torch.manual_seed(0)
    network: nn.Module = use_channels_last(build_network(cfg)).train()
    optimizer = build_optimizer(cfg, network)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, FAR)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            loss = F.cross_entropy(network(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return step


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    raise SystemExit(main())
