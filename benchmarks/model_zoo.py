"""What every config's network costs, dense and pruned, as MODEL_ZOO.md; no data, no weights.

    python benchmarks/model_zoo.py [--results output/model_zoo.jsonl] [--page MODEL_ZOO.md] [--configs CONFIG ...]

A network is followed at its configs' image size, on tensors without values where that can be done, and pruned by a
random plan to each budget that a config beside it asks for. One line of the results file is one network; what is in
the file already is not counted again, so the whole can be cut off and resumed.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode
from prunability import add_row, apart, read_rows

from sirfp.budget.allocation import allocate
from sirfp.channels import find_again, find_groups
from sirfp.channels.find import ChannelGroups
from sirfp.criteria import CRITERIA, build_criterion
from sirfp.reporting.tables import Table, giga, mega, percent
from sirfp.sources.source import Source, from_config

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("backbone.bottom_up", "backbone")
SMALL = (64, 64)
"""Image size at which cuts are tried."""
LONGEST_FIRST = "|".join(sorted(CRITERIA, key=len, reverse=True))
NAME = re.compile(rf"(?P<network>.+?)_(?P<criterion>{LONGEST_FIRST})(_keep(?P<percent>\d+))?")
"""What a pruning config is called."""
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
"""Data sets by the folder of their configs, in the page's order; folders that stand for the user's own are left out."""

HEAD = """# Model zoo

    python benchmarks/model_zoo.py --page MODEL_ZOO.md

What each config's network costs on one image, by this project's counter: a multiply-add is one FLOP. No data and no
weights are needed for this. A pruned row is a *random* plan at the config's budget: its FLOPs are the budget's whatever
the weights, its widths, and with them the parameters, will be others after training. Heads that only training uses are
not counted; two-stage detectors are counted with all their proposals.

The last column is what a whole run of the config measured, by one seed; the circumstances are in the
[README](README.md#measured). It is empty where no such run is on record.

`<network>` is dense, `<network>_<criterion>_keep<per cent of FLOPs>` is pruned (`<network>_sirfp`, where there is one
budget). Rivals share a row: by the budget they cost the same.
"""
COMMAND = "python projects/{task}/train_net.py --config-file projects/{task}/configs/{folder}/CONFIG.yaml"
MEASURED = {
    "projects/segmentation/configs/camvid/deeplab_v3_plus_lite0_sirfp.yaml": "66.94",
    "projects/classification/configs/cifar10/efficientnet_lite0_sirfp.yaml": "72.00",
}
"""What whole runs of configs gave in the end, as the README prints it."""


class Family(NamedTuple):
    """The configs of one network on one data set.

    Attributes:
        task: the project.
        folder: of its configs.
        network: the dense config's name.
        pruned: {name: criterion}.
    """

    task: str
    folder: str
    network: str
    pruned: Mapping[str, str]

    def path(self, name: str) -> str:
        """A config's path below the checkout."""
        return f"projects/{self.task}/configs/{self.folder}/{name}.yaml"


def families(folders: Sequence[str] = tuple(TITLES)) -> list[Family]:
    """The configs of all projects, by network, in the order of the page."""
    found = []
    for folder in folders:
        for task in METRIC:
            stems = sorted(file.stem for file in (ROOT / "projects" / task / "configs" / folder).glob("*.yaml"))
            named = {stem: NAME.fullmatch(stem) for stem in stems}
            for network in (stem for stem, match in named.items() if match is None):
                pruned = {s: m["criterion"] for s, m in named.items() if m and m["network"] == network}
                found.append(Family(task, folder, network, pruned))
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
        config = family.path(family.network)
        if config in done or (args.configs and config not in args.configs):
            continue
        row = apart(lambda family=family: measure(family), seconds=args.seconds, threads=args.threads)
        done[config] = row = {"config": config} | row
        add_row(args.results, row)
        print(row.get("error") or f"{row['flops'] / 1e9:9.2f} GFLOPs {row['seconds']:6.1f} s", config, flush=True)
    if args.page:
        args.page.write_text(page(done))
    return any(row.get("error") for row in done.values())


def measure(family: Family, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Counts a network, and what a random plan leaves at each budget of the configs beside it.

    Args:
        family: the network.
        size: (height, width) of the image; the configs' own by default.

    Raises:
        RuntimeError: a cut is not possible that the pass without values takes for possible.
    """
    start = time.perf_counter()
    source, found = follow(family, size)
    scores = build_criterion("random", source.model, found.groups, seed=0).scores()
    row: dict[str, Any] = {"size": source.size, "flops": found.flops(), "params": found.params(), "pruned": {}}
    for name, criterion in family.pruned.items():
        if criterion.startswith("sirfp"):
            share = keep_flops(family.path(name))
            keep = allocate(found, scores, share * found.flops(), partitions=PARTS)
            row["pruned"][name] = {"keep": share, "flops": found.flops(keep), "params": found.params(keep)}
    return row | {"seconds": time.perf_counter() - start}


def keep_flops(config: str) -> float:
    """A config's budget."""
    return CfgNode.load_yaml_with_base(str(ROOT / config))["SIRFP"]["KEEP_FLOPS"]


def follow(family: Family, size: tuple[int, int] | None = None) -> tuple[Source, ChannelGroups]:
    """A dense network with random weights, and its groups with what they cost at the size that its prunings count on.

    Cuts are tried at a small size. Then values matter only where boxes are chosen by them: segmentors are followed at
    their own size on tensors that have none, in no time.
    """
    options = ["MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", "", "MODEL.MIT.WEIGHTS", ""]
    config = next((name for name, criterion in family.pruned.items() if criterion == "sirfp"), family.network)
    source = from_config(str(ROOT / family.path(config)), options, size=size)
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
    shown = [family for family in families() if "flops" in rows.get(family.path(family.network), {})]
    for (folder, task), members in groupby(shown, key=lambda family: (family.folder, family.task)):
        body = [line for family in members for line in _lines(family, rows[family.path(family.network)])]
        columns = ("config", "image", "GFLOPs", "kept", "M params", "kept", METRIC[task])
        command = COMMAND.format(task=task, folder=folder)
        parts.append(f"## {TITLES[folder]}: {task}\n`{command}`\n\n{Table(columns, tuple(body)).markdown()}\n")
    return "\n".join(parts)


def _lines(family: Family, row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The dense row, and one for each budget with the rivals that share it."""

    def line(name: str, flops: int, params: int) -> tuple[str, ...]:
        costs = giga(flops), percent(flops, row["flops"]), mega(params), percent(params, row["params"])
        return (f"`{name}`", " x ".join(map(str, row["size"])), *costs, MEASURED.get(family.path(name), ""))

    lines = [line(family.network, row["flops"], row["params"])]
    for name, found in row["pruned"].items():
        lines.append(line(name, found["flops"], found["params"]))
        budget = name.removeprefix(f"{family.network}_{family.pruned[name]}")
        rivals = sorted(c for n, c in family.pruned.items() if n == f"{family.network}_{c}{budget}" and n != name)
        if rivals:
            lines.append((f"`{family.network}_{{{','.join(rivals)}}}{budget}`", *lines[-1][1:4], "", "", ""))
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
