"""Draws the pictures of docs/how_it_works.md from a run's output folder, and prints the numbers that the page quotes.

    python benchmarks/how_it_works.py output/camvid_how_it_works [--layer NAME] [--image N] [--to docs/images]

The run must be one of the segmentation project with `SIRFP.CRITERION sirfp`, `SIRFP.STEPS 1` and a checkpoint between
its last statistics and its cut (`SOLVER.CHECKPOINT_PERIOD` one less than `SIRFP.START_ITER`), which contains the
redundancies that determined the cut. Its data set must be installed. The same cut is made again in three ways and
evaluated: without compensation, with bias compensation, and with reconstruction.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from how_it_works_figures import greedy_curves, map_pairs, map_rows, matrices, narrowed
from torch import nn

from sirfp.channels import find_groups
from sirfp.checkpoint import load, read_safetensors, restore
from sirfp.clique import greedy
from sirfp.config import input_size, load_config, register_data
from sirfp.config.options import criterion_options
from sirfp.criteria import build_criterion
from sirfp.criteria.sirfp import SIRFP
from sirfp.errors import InputError
from sirfp.moments import take_moments
from sirfp.network.features import watch
from sirfp.network.forward import call, inference, training_branches
from sirfp.prune import cut
from sirfp.redundancy import edge_weights
from sirfp.reporting import figures, tables
from sirfp.structure.groups import ChannelGroups, Group
from sirfp.structure.plan import PruningPlan

PROJECT = Path(__file__).resolve().parents[1] / "projects" / "segmentation"
NAME = "how_it_works"
WIDTHS = (16, 128)
"""The smallest and the largest number of channels of a layer that can be shown."""
SCENES = 2
"""Test images whose predictions are shown."""


class Run(NamedTuple):
    """The results of a training run, and the network just before its cut."""

    folder: Path
    cfg: CfgNode
    trainer: type
    draw: Callable[..., None]
    dense: nn.Module
    found: ChannelGroups
    plan: PruningPlan
    criterion: SIRFP
    rows: dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's output folder")
    parser.add_argument("--layer", default="", help="the group of channels to show (default: one with large maps)")
    parser.add_argument("--image", type=int, default=0, help="which test image to show maps of (default 0)")
    parser.add_argument("--to", type=Path, default=Path("docs/images"), help="folder of the pictures")
    args = parser.parse_args()
    try:
        show(read_run(args.run), args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show(run: Run, args: argparse.Namespace) -> None:
    """Draws all pictures and prints all numbers."""

    def place(part: str) -> Path:
        return args.to / f"{NAME}_{part}.png"

    group = run.found[args.layer] if args.layer else default_layer(run)
    redundancy = run.criterion.matrix(group)
    order = greedy(edge_weights(redundancy))[0].numpy()
    kept = np.array([group.channels.index(channel) for channel in run.plan.kept[group.name]])
    first, alike, apart = most_and_least_redundant(redundancy)
    item = test_item(run, args.image)
    maps = layer_maps(run, group, item)
    shown = (item["image"].permute(1, 2, 0).numpy()[:, :, :: -1 if run.cfg.INPUT.FORMAT == "BGR" else 1], maps)
    print(f"layer {group.name}: {group.size} channels, {len(kept)} kept; maps of {maps.shape[1]} x {maps.shape[2]}")
    for what, other in (("most", alike), ("least", apart)):
        value = abs(float(redundancy[first, other]))
        print(f"channel {first} is {what} redundant with channel {other}: {value:.4f}")
    before, after = mean(redundancy), mean(redundancy[kept][:, kept])
    last = order[group.size - len(kept) :]
    print(f"mean redundancy of a pair: {before:.4f} of all, {after:.4f} of those that stay")
    print(f"of the channels that stay, {np.isin(kept, last).mean():.1%} are the last of the greedy order")
    map_pairs(*shown, redundancy, (first, alike, apart), place("pairs"))
    matrices(redundancy, order, kept, place("matrix"))
    map_rows(maps, order, kept, place("maps"))
    greedy_curves(curves(run, group), group.name, place("greedy"))
    figures.kept_channels(run.plan, place("kept"))
    states = cuts(run)
    networks = {"dense": run.dense, "cut": states["plain cut"], "cut, reconstructed": states["reconstruction"]}
    networks["fine-tuned"] = pruned(run)
    run.draw(run.cfg, networks, str(place("predictions")), SCENES)
    for part in ("pairs", "matrix", "maps", "greedy", "kept", "predictions"):
        narrowed(place(part))
    for name, model in states.items():
        print(f"{name}: mIoU {run.trainer.test(run.cfg, model)['sem_seg']['mIoU']:.2f}")
    print(tables.stages(run.rows, ["sem_seg/mIoU", "sem_seg/pACC"]))


def read_run(folder: Path) -> Run:
    """Reads a run's folder.

    Raises:
        InputError: a file that the pictures need is missing.
    """
    for name in ("config.yaml", "dense.safetensors", "pruned.safetensors", "plan.json", "pruning.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: is it the output folder of a run that has ended?")
    sys.path.insert(0, str(PROJECT))
    script = runpy.run_path(str(PROJECT / "train_net.py"))
    cfg = load_config(folder / "config.yaml", ["MODEL.DEVICE", "cpu"], script["add_segmentation_config"])
    if (cfg.SIRFP.CRITERION, cfg.SIRFP.STEPS) != ("sirfp", 1):
        raise InputError(f"{folder} is no run with SIRFP.CRITERION sirfp and SIRFP.STEPS 1")
    register_data(cfg)
    trainer = script["SegmentationTrainer"]
    dense = trainer.build_model(cfg).eval()
    restore(dense, *read_safetensors(folder / "dense.safetensors"), "dense.safetensors")
    found = find_groups(dense, example(cfg), cfg.SIRFP.IGNORE)
    criterion = build_criterion("sirfp", dense, found.groups, **criterion_options(cfg))
    criterion.load_state_dict(statistics(folder))
    plan = PruningPlan.from_json((folder / "plan.json").read_text())
    rows = json.loads((folder / "pruning.json").read_text())
    return Run(folder, cfg, trainer, script["draw_predictions"], dense, found, plan, criterion, rows)


def statistics(folder: Path) -> dict[str, Any]:
    """The criterion's statistics in the checkpoint just before the cut.

    Raises:
        InputError: no checkpoint contains them.
    """
    for file in sorted(folder.glob("model_0*.pth"), reverse=True):
        content = torch.load(file, map_location="cpu", weights_only=True)
        kept = content["trainer"]["hooks"].get("Accumulate", {}).get("statistics")
        if kept and not content["plan"]:
            return kept["criterion"]
    raise InputError(
        f"{folder} has no checkpoint with statistics: run it with SOLVER.CHECKPOINT_PERIOD one less than "
        "SIRFP.START_ITER"
    )


def example(cfg: CfgNode) -> list[dict[str, Any]]:
    """An input of the network, of the size on which FLOPs are counted."""
    height, width = input_size(cfg)
    return [{"image": torch.zeros(3, height, width), "height": height, "width": width}]


def default_layer(run: Run) -> Group:
    """The layer with the largest maps, then most lost channels, of those with one norm and a suitable width."""
    fit = [g for g in run.found if len(g.features) == 1 and WIDTHS[0] <= g.size <= WIDTHS[1]]
    lost = {g.name: g.size - len(run.plan.kept[g.name]) for g in fit}
    fit = [g for g in fit if lost[g.name] > g.size // 8]
    if not fit:
        raise InputError("no layer has one norm and channels that were cut: name one with --layer")
    return max(fit, key=lambda g: (g.features[0].positions, lost[g.name]))


def test_item(run: Run, index: int) -> dict[str, Any]:
    """One test image as an input of the network.

    Raises:
        InputError: the test set has fewer images.
    """
    name = run.cfg.DATASETS.TEST[0]
    count = len(DatasetCatalog.get(name))
    if not 0 <= index < count:
        raise InputError(f"--image must lie in [0, {count - 1}], got {index}")
    return next(itertools.islice(run.trainer.build_test_loader(run.cfg, name), index, None))[0]


@torch.no_grad()
def layer_maps(run: Run, group: Group, item: dict[str, Any]) -> np.ndarray:
    """The maps of a layer's channels before the activation, (C, H, W), for one image."""
    feature, seen = group.features[0], []
    handle = watch(run.dense.get_submodule(feature.module), lambda x: seen.append(x.detach()))
    with inference(run.dense):
        call(run.dense, [item])
    handle.remove()
    return seen[0][0][torch.as_tensor(feature.index[:, 0])].float().numpy()


def most_and_least_redundant(redundancy: torch.Tensor) -> tuple[int, int, int]:
    """Both channels of the most redundant pair, and the channel that is least redundant with the first of them."""
    values = redundancy.abs().fill_diagonal_(-1)
    first, alike = divmod(int(values.argmax()), len(values))
    return first, alike, int(values[first].where(values[first] >= 0, torch.inf).argmin())


def mean(matrix: torch.Tensor) -> float:
    """The mean absolute value off the diagonal."""
    size = len(matrix)
    return float((matrix.abs().sum() - matrix.diagonal().abs().sum()) / max(1, size * (size - 1)))


def curves(run: Run, shown: Group) -> dict[str, tuple[np.ndarray, int]]:
    """{group: (redundancies at removal in greedy order, channels removed)} of the groups in `shown`'s partition."""
    scores = run.criterion.scores()
    prefix = next((p for p in run.cfg.SIRFP.PARTITIONS if any(g.name.startswith(p) for g in run.found)), "")
    beside = [g for g in run.found if g.name.startswith(prefix) == shown.name.startswith(prefix)]
    return {g.name: (-np.sort(scores[g.name].numpy()), g.size - len(run.plan.kept[g.name])) for g in beside}


def cuts(run: Run) -> dict[str, nn.Module]:
    """The run's cut, made again without compensation and with each kind of it."""
    keep = np.concatenate([np.isin(g.channels, run.plan.kept[g.name]) for g in run.found])
    batches = list(itertools.islice(run.trainer.build_train_loader(run.cfg), run.cfg.SIRFP.RECONSTRUCTION_ITERS or 16))
    with training_branches(run.dense):
        moments = take_moments(run.dense, run.found, batches)
    ways: dict[str, dict[str, Any]] = {
        "plain cut": {"bias_correction": False},
        "bias compensation": {"bias_correction": True},
        "reconstruction": {"bias_correction": True, "moments": moments},
    }
    models = {}
    for name, options in ways.items():
        models[name] = copy.deepcopy(run.dense)
        cut(models[name], run.found, keep, **options)
    return models


def pruned(run: Run) -> nn.Module:
    """The run's final network."""
    model = run.trainer.build_model(run.cfg)
    load(run.folder / "pruned.safetensors", model)
    return model.eval()


if __name__ == "__main__":
    raise SystemExit(main())
