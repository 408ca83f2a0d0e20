"""What pruning costs and gives on a GPU: statistics, the pause after a cut, float16, two devices, and latency.

    python benchmarks/gpu.py [--parts statistics pause half latency processes] [--device cuda] [--json gpu.json]

Takes at most ten minutes on one device. Networks have random weights, batches are random.

- statistics: the time that `sirfp`'s statistics add to a training step in mixed precision. Bound: 5% of a step at the
  default period. An update that waits for the device is an error: it is counted with CUDA's debug mode for
  synchronisation.
- pause: the time of each of the first 20 training iterations after the start and after a cut, on the device and with
  groups found on a CPU copy before, and what the slowest iteration after the cut does, by kernel and by host function.
- half: float16 with a gradient scaler through a cut: losses stay finite, and the scaler's scale does not collapse.
- latency: dense and pruned ResNet-50, DeepLabV3 and RetinaNet: eager, channels_last and compiled.
- processes: two processes by NCCL on two devices cut the same channels.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage
from subjects import build, machine, trained
from torch import nn
from torch.profiler import ProfilerActivity, profile

import sirfp
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.criteria.observer import PERIOD, Observer
from sirfp.network.forward import call, inference

PARTS = ("statistics", "pause", "half", "latency", "processes")
NETWORKS = ("resnet50", "deeplab", "retinanet")
BOUND = 0.05
"""Largest share of a mixed-precision step that statistics may add, at the default period."""
FIRST = 20
"""Number of iterations timed after the start and after a cut."""
SHARE = 0.4
"""Of the FLOPs that pruned networks keep."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="of `subjects.build` (default: all three)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="timed repetitions (default 20)")
    parser.add_argument("--json", type=Path, help="write the figures here; after each part, so none is lost")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu tries the program")
    result: dict[str, Any] = {"machine": machine() | {"device": device_name(args.device)}}
    for part in args.parts:
        start = time.perf_counter()
        result[part] = globals()[f"measure_{part}"](args)
        result[part]["seconds"] = time.perf_counter() - start
        print(json.dumps({part: result[part]}, indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))
    costs = result.get("statistics", {})
    bad = [name for name in args.networks if costs and not costs[name]["within_bounds"]]
    if bad:
        print(f"statistics are above the bound of {BOUND:.0%} of a step, or wait for the device: {', '.join(bad)}")
    return 1 if bad else 0


class Subject:
    """A network on a device with an optimizer and one random batch, trained in mixed precision.

    Args:
        name: of `subjects.build`.
        args: the command line's.
        half: float16 with a gradient scaler in place of bfloat16.
    """

    def __init__(self, name: str, args: argparse.Namespace, half: bool = False):
        torch.manual_seed(0)
        model, self.loss_of, self.example = trained(name, args.batch, *args.size, device=args.device)
        self.device, self.name = torch.device(args.device), name
        self.model = model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.001, momentum=0.9)
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def step(self) -> torch.Tensor:
        """Trains one iteration; returns its loss."""
        with torch.autocast(self.device.type, self.dtype):
            loss = self.loss_of(self.model)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def prune(self, share: float = SHARE) -> sirfp.PruningPlan:
        """Cuts by magnitude, which needs no images, with the optimizer's state."""
        return sirfp.prune(self.model, self.example, "magnitude", share, optimizer=self.optimizer)

    def timed(self, work: Callable[[], Any]) -> float:
        """Returns the seconds that some work takes, with all that it leaves for the device to do."""
        wait(self.device)
        start = time.perf_counter()
        work()
        wait(self.device)
        return time.perf_counter() - start


def measure_statistics(args: argparse.Namespace) -> dict[str, Any]:
    """Returns, for each network, what an update of the statistics adds to a step, and its synchronisations."""
    result: dict[str, Any] = {}
    for name in args.networks:
        subject = Subject(name, args)
        found = find_groups(subject.model, subject.example)
        observer = Observer(subject.model, build_criterion("sirfp", subject.model, found.groups), PERIOD)

        def looking(subject=subject, observer=observer) -> None:
            observer.iteration = 0  # an iteration that updates
            with observer:
                subject.step()
                observer.step()

        with EventStorage(0):
            for work in (subject.step, looking, subject.step):
                subject.timed(work)
            times = [subject.timed(looking if i % 2 else subject.step) for i in range(2 * args.rounds + 1)]
            plain = statistics.median(times[::2])
            added = statistics.median(times[i] - (times[i - 1] + times[i + 1]) / 2 for i in range(1, len(times), 2))
            waits = synchronisations(looking, subject.device) - synchronisations(subject.step, subject.device)
        share = added / PERIOD / plain
        fine = share <= BOUND and waits <= 0
        result[name] = {"step_s": plain, "update_s": added, "share": share, "synchronisations": waits}
        result[name]["within_bounds"] = fine
    return result


def synchronisations(work: Callable[[], Any], device: torch.device) -> int:
    """Returns how often some work waits for the device; 0 on a processor."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def measure_pause(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of the first iterations after the start and after a cut, and a profile of the slowest."""
    result: dict[str, Any] = {}
    for name in args.networks:
        for search in (False, True) if args.device.startswith("cuda") else (False,):
            torch.backends.cudnn.benchmark = search
            subject = Subject(name, args)
            with EventStorage(0):
                first = [subject.timed(subject.step) for _ in range(FIRST)]
                on_cpu = subject.timed(partial(find_groups, subject.model, subject.example, device="cpu"))
                on_device = subject.timed(partial(find_groups, subject.model, subject.example))
                cut = subject.timed(subject.prune)
                table, slowest = profiled(subject)
                after = [slowest] + [subject.timed(subject.step) for _ in range(FIRST - 1)]
            result[f"{name}, cudnn.benchmark {search}"] = {
                "groups_on_cpu_s": on_cpu, "groups_on_device_s": on_device, "cut_s": cut,
                "after_start_s": first, "after_cut_s": after, "usual_s": statistics.median(after[FIRST // 2 :]),
                "pause_s": sum(after) - FIRST * statistics.median(after[FIRST // 2 :]), "first_after_cut": table,
            }  # fmt: skip
    torch.backends.cudnn.benchmark = False
    return result


def profiled(subject: Subject) -> tuple[dict[str, list], float]:
    """Profiles one iteration; returns the ten longest kernels and host functions in ms, and the iteration's seconds."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (subject.device.type == "cuda")
    with profile(activities=kinds) as found:
        seconds = subject.timed(subject.step)
    events = found.key_averages()

    def longest(attribute: str) -> list[tuple[str, float, int]]:
        spent = sorted(events, key=lambda event: -getattr(event, attribute, 0))[:10]
        return [(e.key[:80], round(getattr(e, attribute, 0) / 1000, 2), e.count) for e in spent]

    return {"kernels": longest("self_device_time_total"), "host": longest("self_cpu_time_total")}, seconds


def measure_half(args: argparse.Namespace) -> dict[str, Any]:
    """Returns losses and scales of float16 training around a cut."""
    result: dict[str, Any] = {}
    for name in args.networks:
        subject = Subject(name, args, half=True)
        with EventStorage(0):
            before = [float(subject.step()) for _ in range(5)]
            plan = subject.prune()
            after = [float(subject.step()) for _ in range(10)]
        result[name] = {
            "kept": plan.flops[1] / plan.flops[0], "losses": before + after, "scale": subject.scaler.get_scale(),
            "finite": sum(map(torch.isfinite, torch.tensor(after))).item(),
        }  # fmt: skip
    return result


def measure_latency(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the median seconds of a forward pass of the dense and the pruned network, and their ratio."""
    result: dict[str, Any] = {}
    for name in args.networks:
        model, example = build(name, args.size)
        example = on(args.device, example)
        models = {"dense": model.to(args.device), "pruned": copy.deepcopy(model).to(args.device)}
        plan = sirfp.prune(models["pruned"], example, "magnitude", SHARE, round_to=8)
        result[name] = {"flops": plan.flops[1] / plan.flops[0]}
        for way in ("eager", "channels_last", "compiled"):
            times = {kind: _latency(each, example, way, args) for kind, each in models.items()}
            ratio = times["dense"] / times["pruned"] if all(times.values()) else None
            result[name][way] = times | {"speedup": ratio}
    return result


def _latency(model: nn.Module, example: Any, way: str, args: argparse.Namespace) -> float | None:
    """Returns the median seconds of a call; None if the network cannot be compiled."""
    device, model = torch.device(args.device), copy.deepcopy(model).eval()
    if way != "eager":
        model = model.to(memory_format=torch.channels_last)
    ran: Any = torch.compile(model) if way == "compiled" else model
    times = []
    with inference(model):
        try:
            for _ in range(3):
                call(ran, example)
        except Exception as error:
            print(f"{way}: {type(error).__name__}", flush=True)
            return None
        for _ in range(args.rounds):
            wait(device)
            start = time.perf_counter()
            call(ran, example)
            wait(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_processes(args: argparse.Namespace) -> dict[str, Any]:
    """Returns whether two processes cut the same channels; "not run" with fewer than two devices."""
    cuda = args.device.startswith("cuda")
    if cuda and torch.cuda.device_count() < 2:
        return {"not_run": "needs two devices"}
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_one_of_two, (answers, "nccl" if cuda else "gloo", args), nprocs=2)
    first, second = answers.get(), answers.get()
    return {"backend": "nccl" if cuda else "gloo", "same_channels": first == second, "channels": len(first)}


def _one_of_two(rank: int, answers: Any, backend: str, args: argparse.Namespace) -> None:
    """Prunes by statistics of two processes with other batches, and puts the kept channels into the queue."""
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    address = f"tcp://127.0.0.1:{29500 + args.rounds}"
    dist.init_process_group(backend, init_method=address, world_size=2, rank=rank)
    model, example = build("resnet18", (64, 64))
    model, example = model.to(device), on(device, example)
    torch.manual_seed(rank)
    batches = [torch.randn(2, 3, 64, 64, device=device) for _ in range(4)]
    plan = sirfp.prune(model, example, "sirfp", SHARE, calibration=batches)
    answers.put({name: list(kept) for name, kept in plan.kept.items()})
    dist.barrier()
    dist.destroy_process_group()


def on(device: str, example: Any) -> Any:
    """Returns example inputs on a device; Detectron2's models move theirs."""
    return example.to(device) if isinstance(example, torch.Tensor) else example


def wait(device: torch.device) -> None:
    """Waits until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """Returns the name of the device that the figures are of."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "processor"


if __name__ == "__main__":
    raise SystemExit(main())
