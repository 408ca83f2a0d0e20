"""Tries to prune every config of Detectron2's model zoo, yaml and lazy, and other models of it, with random weights.

    python benchmarks/prunability_detectron2.py [--results output/prunability_detectron2.jsonl]
                                                [--table docs/prunability_detectron2.md] [--configs CONFIG ...]

Each model is traced and pruned to half of its FLOPs by a random plan, at 128 x 160 pixels with few boxes, compared
with the masked dense model on the same boxes, and trained for one step. Every config runs in its own process with a
time limit. Configs in the results file are not run again, so the command can be interrupted and resumed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2_models import MODELS, example
from prunability import (
    add_row,
    check_gradients,
    equal_cell,
    in_own_process,
    one_line,
    prune_to_half,
    read_rows,
)
from randomised import randomised
from torch import nn

from sirfp.sources.source import from_zoo
from sirfp.verify.proof import EQUAL

ZOO = Path(model_zoo.__file__).parent / "configs"
SIZE = (128, 160)
PROPOSALS, DETECTIONS = 20, 10
"""Largest numbers of boxes per image: enough for the comparison, and faster than the defaults."""
NO_DETECTOR = ("common/", "Misc/torchvision_imagenet")
"""Lazy configs that are parts of others, and an example of image classification."""

HEAD = """# Which configs of Detectron2's model zoo can be pruned

    python benchmarks/prunability_detectron2.py --table docs/prunability_detectron2.md

Every config of the installed model zoo was tried with random weights, at {height} x {width} pixels and {proposals}
proposals, on a processor. Each model is traced, pruned to half of its FLOPs by a random plan, compared with the masked
dense model on the same boxes, and trained for one step. *Equal* is the largest relative difference over all scores, box
shifts, masks and maps. Where a statistic is taken over channels, removing channels changes it, so the two models
differ even if the cut is right. For these models a second plan leaves such groups whole, and its difference comes
first. *s* is the time to find the groups, *all* the total time. SyncBN, which trains on GPUs only, stays in evaluation
mode in the training step. Deformable convolutions use torchvision's operator. A difference above {tolerance:g}
counts as equal where rounding errors explain it: *by rounding* is what changes of all weights by a few units in the
last place make (`sirfp.verify.rounding`).

{summary}

{header}
{rows}

## Models without a config in the zoo

Other backbones in smaller sizes, and projects inside Detectron2's package (`benchmarks/detectron2_models.py`).

{header}
{others}
"""
HEADER = """\
| config | M params | GFLOPs | kept | equal | s | all | cause |
| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("output/prunability_detectron2.jsonl"))
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    parser.add_argument("--configs", nargs="*", help="all by default")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one config (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    done = read(args.results)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    wanted = args.configs or configs()
    for number, config in enumerate(wanted, 1):
        if config not in done:
            done[config] = row = in_process(config, args)
            add_row(args.results, row)
            print(f"{number}/{len(wanted)} {_line(row)}", flush=True)
    if args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(table(done))
    print(summary(done))
    return 0


def configs() -> list[str]:
    """All configs of the installed zoo that describe a model, and the models without a config (`MODELS`)."""
    found = [p.relative_to(ZOO).as_posix() for p in ZOO.rglob("*") if p.suffix in (".yaml", ".py")]
    chosen = sorted(c for c in found if not Path(c).name.startswith("Base-") and not c.startswith(NO_DETECTOR))
    return [*chosen, *MODELS]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a results file by config."""
    return {row["config"]: row for row in read_rows(path)}


def in_process(config: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures in its own process; a crash or an exceeded limit becomes an "error"."""
    return {"config": config} | in_own_process(lambda: measure(config), seconds=args.seconds, threads=args.threads)


def build(config: str) -> tuple[nn.Module, list[dict]]:
    """A model with random weights, and an input of it."""
    if config in MODELS:
        return MODELS[config]().eval(), example()
    source = from_zoo(config, size=SIZE)
    return source.model, source.example()


def shorten(model: nn.Module, inputs: list[dict]) -> None:
    """Limits the number of boxes of a two-stage detector."""
    for module in model.modules():
        if isinstance(getattr(module, "post_nms_topk", None), dict):
            module.post_nms_topk = {mode: min(count, PROPOSALS) for mode, count in module.post_nms_topk.items()}
        if isinstance(getattr(module, "test_topk_per_image", None), int):
            module.test_topk_per_image = min(module.test_topk_per_image, DETECTIONS)
    for given in inputs:
        if "proposals" in given:
            given["proposals"] = given["proposals"][:PROPOSALS]


def measure(config: str) -> dict[str, Any]:
    """Prunes one model and returns its row; an exception becomes an "error"."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"config": config}
    start = time.perf_counter()
    try:
        model, inputs = build(config)
        shorten(model, inputs)
        row |= prune(randomised(model), inputs)
    except Exception as error:
        row["error"] = one_line(error)
        row["absent"] = absent(error)
    return row | {"all_seconds": time.perf_counter() - start}


def absent(error: Exception) -> str:
    """The reason why a model cannot run at all, such as a missing library; "" if there is none."""
    cause = error.__cause__ or error
    if isinstance(cause, ModuleNotFoundError):
        return f"needs {cause.name}, another library, which is not installed"
    return ""


def prune(model: nn.Module, inputs: list[dict]) -> dict[str, Any]:
    """Traces, prunes, compares and trains for one step."""
    return prune_to_half(model, inputs, lambda pruned, plan: train_step(pruned, inputs))


def train_step(model: nn.Module, inputs: list[dict]) -> None:
    """A forward and a backward pass in training mode on one made-up annotation.

    Raises:
        RuntimeError: there are no gradients, or one is not finite.
    """
    from detectron2.utils.events import EventStorage

    from sirfp.network.detectron import training_inputs

    model.train()
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()
    with EventStorage(0):
        sum(model(training_inputs(model, inputs)).values()).backward()
    check_gradients(model)


def good(row: Mapping[str, Any]) -> bool:
    """Whether a model was pruned, trains, and equals its masked dense model if it can."""
    if row.get("error"):
        return False
    return row["kept"] <= 0.5025 and row["exact_equal"]


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The number of models that were pruned, as a sentence."""
    number = sum(map(good, rows.values()))
    able = sum(not row.get("absent") for row in rows.values())
    share = number / max(1, len(rows))
    return (
        f"{number} of the {able} configs whose operators and libraries exist on this processor were pruned to half of "
        f"their FLOPs, equal, and train; {number} of all {len(rows)} ({share:.1%})."
    )


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    height, width = SIZE
    zoo = {config: row for config, row in sorted(rows.items()) if config not in MODELS}
    lines, others = ("\n".join(map(_line, part)) for part in (zoo.values(), [rows[m] for m in MODELS if m in rows]))
    facts = {"height": height, "width": width, "proposals": PROPOSALS, "tolerance": EQUAL, "header": HEADER}
    return HEAD.format(summary=summary(zoo), rows=lines, others=others, **facts)


def _line(row: Mapping[str, Any]) -> str:
    if row.get("error"):
        cause = row.get("absent") or row["error"].replace("|", "/")[:110]
        return f"| {row['config']} | | | | | | | {cause} |"
    cells = [row["config"], f"{row['params'] / 1e6:.1f}", f"{row['flops'] / 1e9:.1f}", f"{row['kept']:.2f}"]
    cells += [equal_cell(row, "all"), f"{row['seconds']:.1f}", f"{row['all_seconds']:.0f}", ""]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
