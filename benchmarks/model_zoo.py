"""Writes MODEL_ZOO.md: the cost of every network, dense and pruned, and each run's command; needs no data or weights.

    python benchmarks/model_zoo.py [--results output/model_zoo.jsonl] [--page MODEL_ZOO.md] [--configs CONFIG ...]

A network is a dense config. Its prunings are those of its data set's recipe, `base/recipe/prune_<data set>.yaml`, at
each of `BUDGETS`, for some networks by each criterion in `projects/criteria`; or the config `<network>_sirfp.yaml` in
the same folder, if there is one. A network is traced at its image size, on tensors without values if possible, and
pruned by a random plan to each budget. Each line of the results file is one network. Networks in the file are not
counted again, so the command can be interrupted and resumed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode
from prunability import add_row, in_own_process, read_rows

from sirfp.budget.allocation import allocate
from sirfp.channels import find_again, find_groups
from sirfp.channels.find import ChannelGroups
from sirfp.criteria import build_criterion
from sirfp.reporting.tables import Table, giga, mega, percent
from sirfp.sources.source import Source, from_config

ROOT = Path(__file__).resolve().parents[1]
SMALL = (64, 64)
"""Image size of the trial of cuts."""
OWN = "_sirfp"
"""Ending of the name of a config that prunes the dense config in the same folder by its own schedule."""
BUDGETS = (0.4, 0.5)
"""Shares of the FLOPs that stay."""
RIVALS = tuple(sorted(file.stem for file in (ROOT / "projects/criteria").glob("*.yaml") if file.stem != "sirfp"))
"""The criteria that SIRFP is compared with, at the first budget."""
COMPARED = {
    "cityscapes": ("deeplab_v3_R_50_os8", "deeplab_v3_plus_R_50_os8"),
    "ade20k": ("deeplab_v3_R_50_os8",),
    "coco_stuff": ("deeplab_v3_R_50_os8",),
    "pascal_context": ("deeplab_v3_R_50_os8",),
    "camvid": ("deeplab_v3_R_50_os8",),
    "coco": tuple(f"{name}_R_50_FPN_1x" for name in ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")),
    "imagenet": ("resnet50",),
}
"""The networks with rows for rivals, by the folder of their configs."""
METRIC = {"segmentation": "mIoU", "detection": "AP", "classification": "top-1"}
TITLES = {
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "coco_stuff": "COCO-Stuff-10K",
    "pascal_context": "Pascal Context",
    "camvid": "CamVid",
    "coco": "COCO 2017",
    "bccd": "Blood cells",
    "imagenet": "ImageNet",
    "cifar10": "CIFAR-10",
    "scenes": "The embedded scenes",
}
"""Data sets by the folder of their configs, in the page's order; folders for the user's own data are left out."""

HEAD = """# Model zoo

    python benchmarks/model_zoo.py --page MODEL_ZOO.md

The tables give the cost of each network on one image, counted by sirfp: a multiply-add is one FLOP. Counting needs
neither data nor weights. A pruned row is a *random* plan at the row's budget. Its FLOPs meet the budget for any
weights; its widths, and therefore its parameters, will be different after training. Heads that only training uses are
not counted; two-stage detectors are counted with the maximum number of proposals.

The column of the metric is the result of a whole run with one seed; the [README](README.md#measured) describes these
runs. The column is empty if there was no such run.

`<network>` is dense, `<network>_<criterion>_keep<per cent of FLOPs>` is pruned (`<network>_sirfp`, where there is one
budget). Rivals share a row, because the budget fixes the cost. The last column is the command of the run. `P` is set as
above the table; replace `RIVAL` by one of the row's criteria. A run writes into `output/<data set>_<row>`.
"""
MEASURED = {
    "projects/segmentation/configs/camvid/deeplab_v3_plus_lite0_sirfp.yaml": "66.94",
    "projects/classification/configs/cifar10/efficientnet_lite0_sirfp.yaml": "72.00",
}
"""The final metric of whole runs of configs, as in the README."""


class Run(NamedTuple):
    """A training run.

    Attributes:
        files: config files, relative to the checkout; keys of later files replace those of earlier ones.
        options: KEY VALUE pairs.
        criterion: "" for a dense run.
        keep: the share of FLOPs that stay.
    """

    files: tuple[str, ...]
    options: tuple[str, ...] = ()
    criterion: str = ""
    keep: float = 1.0

    def command(self) -> str:
        """The run's command in a shell; its variable `P` must be the project's folder."""
        project = "/".join(self.files[0].split("/")[:2])
        words = [word for file in self.files for word in ("--config-file", file.replace(project, "$P"))]
        return " ".join(["python $P/train_net.py", *words, *self.options])


class Family(NamedTuple):
    """The runs of one network on one data set.

    Attributes:
        task: the project.
        folder: folder of the dense config.
        network: the dense config's name.
        pruned: {name: run}.
    """

    task: str
    folder: str
    network: str
    pruned: Mapping[str, Run]

    @property
    def dense(self) -> Run:
        """The run that trains the network."""
        return Run((self.config,))

    @property
    def config(self) -> str:
        """The dense config's path, relative to the checkout."""
        return f"projects/{self.task}/configs/{self.folder}/{self.network}.yaml"


def families(folders: Sequence[str] = tuple(TITLES)) -> list[Family]:
    """The runs of all projects, by network, in the order of the page."""
    found = []
    for folder in folders:
        for task in METRIC:
            stems = sorted(file.stem for file in (ROOT / "projects" / task / "configs" / folder).glob("*.yaml"))
            for network in (stem for stem in stems if not stem.endswith(OWN)):
                found.append(Family(task, folder, network, _prunings(task, folder, network)))
    return found


def _prunings(task: str, folder: str, network: str) -> dict[str, Run]:
    configs = f"projects/{task}/configs"
    own = f"{configs}/{folder}/{network}{OWN}.yaml"
    if (ROOT / own).is_file():
        keep = CfgNode.load_yaml_with_base(str(ROOT / own))["SIRFP"]["KEEP_FLOPS"]
        return {f"{network}{OWN}": Run((own,), (), "sirfp", keep)}
    recipe = f"{configs}/base/recipe/prune_{folder}{'_masks' if network.startswith('mask_') else ''}.yaml"
    if not (ROOT / recipe).is_file():
        return {}
    files = (f"{configs}/{folder}/{network}.yaml", recipe)
    dense = f"output/{folder}_{network}/model_final.pth"
    weights = ("MODEL.WEIGHTS", dense) if folder == "coco" else ()  # the others start from pretrained classifiers
    found = {}
    for keep in BUDGETS:
        options = ("SIRFP.KEEP_FLOPS", str(keep), *weights)
        rivals = RIVALS if keep == BUDGETS[0] and network in COMPARED.get(folder, ()) else ()
        for criterion in ("sirfp", *rivals):
            over = () if criterion == "sirfp" else (f"projects/criteria/{criterion}.yaml",)
            found[f"{network}_{criterion}_keep{round(100 * keep)}"] = Run((*files, *over), options, criterion, keep)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("output/model_zoo.jsonl"))
    parser.add_argument("--page", type=Path, help="write the page here")
    parser.add_argument("--configs", nargs="*", help="paths of dense configs; all by default")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one network (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    done = {row["config"]: row for row in read_rows(args.results) if not row.get("error")}
    for family in families():
        config = family.config
        if config in done or (args.configs and config not in args.configs):
            continue
        row = in_own_process(lambda family=family: measure(family), seconds=args.seconds, threads=args.threads)
        done[config] = row = {"config": config} | row
        add_row(args.results, row)
        print(row.get("error") or f"{row['flops'] / 1e9:9.2f} GFLOPs {row['seconds']:6.1f} s", config, flush=True)
    if args.page:
        args.page.write_text(page(done))
    return any(row.get("error") for row in done.values())


def measure(family: Family, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts the cost of a network, and that of a random plan at each of its budgets.

    Args:
        family: the network.
        size: (height, width) of the image; the config's own by default.

    Raises:
        RuntimeError: a cut that the pass without values allows is not possible.
    """
    start = time.perf_counter()
    source, found = follow(family, size)
    scores = build_criterion("random", source.model, found.groups, seed=0).scores()
    row: dict[str, Any] = {"size": source.size, "flops": found.flops(), "params": found.params(), "pruned": {}}
    for name, run in family.pruned.items():
        if run.criterion == "sirfp":
            keep = allocate(found, scores, run.keep * found.flops())
            row["pruned"][name] = {"keep": run.keep, "flops": found.flops(keep), "params": found.params(keep)}
    return row | {"seconds": time.perf_counter() - start}


def follow(family: Family, size: tuple[int, int] | None = None) -> tuple[Source, ChannelGroups]:
    """A dense network with random weights, and its groups with their costs at the image size of its prunings.

    Cuts are tried at a small size. After that, values of tensors matter only for detectors, which choose boxes by
    them. Segmentors are therefore traced at their own size on meta tensors, which is fast.
    """
    options = ["MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", "", "MODEL.MIT.WEIGHTS", ""]
    run = next(iter(family.pruned.values()), family.dense)
    source = from_config([str(ROOT / file) for file in run.files], options, size=size)
    if family.task == "classification":
        return source, find_groups(source.model, source.example())
    tried = find_groups(source.model, replace(source, size=SMALL).example())
    inputs = source.example()
    if family.task == "segmentation":
        source.model.to("meta")
        inputs = [given | {"image": given["image"].to("meta")} for given in inputs]
    found = find_again(source.model, inputs, (), tried)
    if found is tried:
        raise RuntimeError("at a small size other channels can be cut than at its own")
    return source, found


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, of the networks that were counted."""
    parts = [HEAD]
    shown = [family for family in families() if "flops" in rows.get(family.config, {})]
    for (folder, task), members in groupby(shown, key=lambda family: (family.folder, family.task)):
        body = [line for family in members for line in _lines(family, rows[family.config])]
        columns = ("run", "image", "GFLOPs", "kept", "M params", "kept", METRIC[task], "command")
        table = Table(columns, tuple(body)).markdown()
        parts.append(f"## {TITLES[folder]}: {task}\n`P=projects/{task}`\n\n{table}\n")
    return "\n".join(parts)


def _lines(family: Family, row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The dense row, and one for each budget with the rivals that share it."""

    def line(name: str, run: Run, flops: int, params: int) -> tuple[str, ...]:
        costs = giga(flops), percent(flops, row["flops"]), mega(params), percent(params, row["params"])
        size, metric = " x ".join(map(str, row["size"])), MEASURED.get(run.files[-1], "")
        return (f"`{name}`", size, *costs, metric, f"`{run.command()}`")

    lines = [line(family.network, family.dense, row["flops"], row["params"])]
    for name, found in row["pruned"].items():
        run = family.pruned[name]
        lines.append(line(name, run, found["flops"], found["params"]))
        rivals = [other for other in family.pruned.values() if other.keep == run.keep and other.criterion != "sirfp"]
        if rivals:
            listed = f"{{{','.join(rival.criterion for rival in rivals)}}}"
            command = rivals[0].command().replace(f"/{rivals[0].criterion}.yaml", "/RIVAL.yaml")
            shared = name.replace(f"{family.network}_sirfp", f"{family.network}_{listed}")
            lines.append((f"`{shared}`", *lines[-1][1:4], "", "", "", f"`{command}`"))
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
