"""Which configs of Detectron2's model zoo can be pruned: every one of them, yaml and lazy, with random weights.

    python benchmarks/prunability_detectron2.py [--results output/prunability_detectron2.jsonl]
                                                [--table docs/prunability_detectron2.md] [--configs CONFIG ...]

Each model is followed and pruned to half of its FLOPs by a random plan at 256 x 320 pixels, compared with the masked
dense model where both look at the same boxes, and trained for a step. Every config runs in a process of its own
with a limit on time; what is in the results file already is not run again, so the whole can be cut off and resumed.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from randomised import randomised
from torch import nn

ZOO = Path(model_zoo.__file__).parent / "configs"
HALF = 0.5
SIZE = (256, 320)
PROPOSALS, DETECTIONS = 100, 20
TOLERANCE = 1e-4
NO_DETECTOR = ("common/", "Misc/torchvision_imagenet")
"""Lazy configs that are parts of others, or an example of image classification."""

HEAD = """# Which configs of Detectron2's model zoo can be pruned

    python benchmarks/prunability_detectron2.py --table docs/prunability_detectron2.md

Every config of the installed model zoo, with random weights, at {height} x {width} pixels on a processor.
Two-stage models have {proposals} proposals and {detections} detections, to keep this quick. Each is followed,
pruned to half of its FLOPs by a random plan, compared with the masked dense model on the same boxes, and trained for
a step. *Equal* is the largest relative difference over all scores, box shifts,
masks and maps. Where a statistic runs over channels that go, the two differ by nature: there a second plan leaves those whole and its difference comes first, that of the first plan in
brackets. *s* is the time to find the groups. SyncBN, which trains on GPUs only, is held in evaluation mode in the
training step. Deformable convolutions run on torchvision's operator.

{summary}

| config | M params | GFLOPs | kept | equal | s | cause |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
{rows}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("output/prunability_detectron2.jsonl"))
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    parser.add_argument("--configs", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one config (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.one)))
        return 0
    done = read(args.results)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for config in args.configs or configs():
        if config not in done:
            done[config] = row = in_process(config, args)
            with args.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(table(done))
    print(summary(done))
    return 0


def configs() -> list[str]:
    """All configs of the installed zoo that describe a model."""
    found = [p.relative_to(ZOO).as_posix() for p in ZOO.rglob("*") if p.suffix in (".yaml", ".py")]
    return sorted(c for c in found if not Path(c).name.startswith("Base-") and not c.startswith(NO_DETECTOR))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a results file by config."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {row["config"]: row for row in rows}


def in_process(config: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures in a process of its own; a crash or a limit is an answer too."""
    command = [sys.executable, __file__, "--one", config, "--threads", str(args.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.seconds)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"config": config, "error": f"more than {args.seconds} s"}
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"config": config, "error": last[:160]}


def build(config: str) -> tuple[nn.Module, list[dict]]:
    """A model of the zoo with random weights, and what it is called with."""
    from sirfp.source import from_zoo

    source = from_zoo(config, size=SIZE)
    for module in source.model.modules():
        if isinstance(getattr(module, "post_nms_topk", None), dict):
            module.post_nms_topk = dict.fromkeys(module.post_nms_topk, PROPOSALS)
        if hasattr(module, "test_topk_per_image"):
            module.test_topk_per_image = DETECTIONS
    return source.model, source.example()


def measure(config: str) -> dict[str, Any]:
    """Prunes one model and says how it went; an error is part of the answer."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    row: dict[str, Any] = {"config": config}
    try:
        model, inputs = build(config)
        return row | prune(randomised(model), inputs)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:160]
        return row | {"error": f"{type(error).__name__}: {text}"}


def prune(model: nn.Module, inputs: list[dict]) -> dict[str, Any]:
    """Follows, prunes, compares and trains for a step."""
    from sirfp.budget import allocate
    from sirfp.channels import find_groups
    from sirfp.criteria import build_criterion
    from sirfp.prune import cut

    start = time.perf_counter()
    found = find_groups(model, inputs)
    seconds = time.perf_counter() - start
    scores = build_criterion("random", model, found.groups, seed=0).scores()
    keep = allocate(found, scores, HALF * found.flops(), partitions=())
    pruned = copy.deepcopy(model)
    start = time.perf_counter()
    plan = cut(pruned, found, keep, bias_correction=False)
    surgery = time.perf_counter() - start
    worst = exact = difference(model, pruned, plan, inputs)
    train_step(pruned, inputs)
    by_nature = [group for group in found if group.inexact]
    if by_nature:  # once more, without those that cannot be equal
        for group in by_nature:
            keep[found.spans[group.name]] = True
        pruned = copy.deepcopy(model)
        exact = difference(model, pruned, cut(pruned, found, keep, bias_correction=False), inputs)
    return {
        "params": plan.params[0],
        "flops": plan.flops[0],
        "kept": plan.flops[1] / plan.flops[0],
        "difference": worst,
        "exact_difference": exact,
        "inexact": by_nature[0].inexact if by_nature else None,
        "seconds": seconds,
        "surgery_seconds": surgery,
        "groups": len(found),
    }


def difference(model: nn.Module, pruned: nn.Module, plan: Any, inputs: list[dict]) -> float:
    """How far the pruned model is from the dense one with the same channels zero, relative to the largest value.

    Raises:
        RuntimeError: the two cannot be compared.
    """
    from sirfp.calling import call, inference
    from sirfp.models.detections import compare_continuous, is_detector
    from sirfp.verify import compare, mask

    masked = copy.deepcopy(model)
    mask(masked, plan)
    with inference(pruned):
        detects = is_detector(pruned, call(pruned, inputs))
    found = compare_continuous(masked, pruned, inputs, plan) if detects else compare(masked, pruned, inputs)
    if found.problem:
        raise RuntimeError(found.problem)
    return found.relative


def train_step(model: nn.Module, inputs: list[dict]) -> None:
    """A forward and a backward pass in training mode on one made-up annotation.

    Raises:
        RuntimeError: a gradient is missing everywhere or not finite.
    """
    from detectron2.utils.events import EventStorage

    from sirfp.models.detectron import training_inputs

    model.train()
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()
    with EventStorage(0):
        sum(model(training_inputs(model, inputs)).values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(torch.isfinite(g).all() for g in gradients):
        raise RuntimeError("gradients are not finite after pruning")


def good(row: Mapping[str, Any]) -> bool:
    """Whether a model was pruned, trains, and equals its masked one where that has meaning."""
    return not row.get("error") and row["kept"] <= 0.5025 and row["exact_difference"] < TOLERANCE


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many went well."""
    number = sum(map(good, rows.values()))
    return f"{number} of {len(rows)} configs were pruned to half of their FLOPs, equal, and train."


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    height, width = SIZE
    lines = "\n".join(_line(rows[config]) for config in sorted(rows))
    return HEAD.format(
        height=height, width=width, proposals=PROPOSALS, detections=DETECTIONS, summary=summary(rows), rows=lines
    )


def _line(row: Mapping[str, Any]) -> str:
    if row.get("error"):
        return f"| {row['config']} | | | | | | {row['error'].replace('|', '/')[:110]} |"
    equal = f"{row['exact_difference']:.0e}"
    cells = [row["config"], f"{row['params'] / 1e6:.1f}", f"{row['flops'] / 1e9:.1f}", f"{row['kept']:.2f}"]
    cells += [f"{equal} ({row['difference']:.0e})" if row["inexact"] else equal, f"{row['seconds']:.1f}", ""]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
