"""Tries to prune more than 150 models of nine other libraries, with random weights.

    python benchmarks/prunability_libraries.py [--results output/prunability_libraries.jsonl]
                                               [--table docs/prunability_libraries.md]
                                               [--libraries torchvision monai] [--models swin* resnet18] [--again]

Each model is traced and pruned to half of its FLOPs (or to the least it can have) by a random plan, since only the
structure is tried. It is compared with the masked dense model, in single and in double precision, its FLOPs are counted
by PyTorch, it is saved and loaded into a new dense model, and trained for one step. Every model runs in its own process
with limits on time and memory. Models in the results file are not run again, so the command can be interrupted and
resumed. The extra `zoo` installs the libraries.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from library_models import LIBRARIES, Subject
from library_models.subject import twice
from prunability import (
    Row,
    add_row,
    check_gradients,
    counted_flops,
    in_own_process,
    one_line,
    prune_to_half,
    read_rows,
)
from randomised import randomised
from torch import nn

import sirfp
from sirfp.network.forward import call, tensors
from sirfp.verify import compare

RELOADED = 1e-6
"""Largest relative difference between a pruned model and its file loaded again."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("output/prunability_libraries.jsonl"))
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    parser.add_argument("--note", default="", help="sentences for the table: the commit and the machine that measured")
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--models", nargs="*", default=["*"], help="names or patterns; all by default")
    parser.add_argument("--again", action="store_true", help="run models that are in the results file again")
    parser.add_argument("--seconds", type=int, default=600, help="limit for one model (default %(default)s)")
    parser.add_argument("--memory", type=float, default=10, help="limit in GiB (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process that has used several threads cannot be forked safely
    done = read(args.results)
    for library in args.libraries:
        for name in chosen(library, args.models):
            if (library, name) not in done or args.again:
                done[library, name] = row = in_process(library, name, args)
                add_row(args.results, row)
                print(f"{library:14} {verdict(row)}", flush=True)
    from prunability_libraries_table import summary, table

    print(summary(done))
    if args.table:
        args.table.write_text(table(done, args.note))
    return 0


def read(path: Path) -> dict[tuple[str, str], Row]:
    """Rows of a results file by library and model; of several rows of one model, the last."""
    return {(row["library"], row["model"]): row for row in read_rows(path)}


def models(library: str) -> dict[str, Any]:
    """The functions that build a library's models, by name."""
    return importlib.import_module(f"library_models.{LIBRARIES[library]}").MODELS


def chosen(library: str, patterns: list[str]) -> list[str]:
    """The names of a library's models that match a pattern; none, with a word, if the library is not installed."""
    try:
        known = models(library)
    except ModuleNotFoundError as error:
        print(f"{library}: left out, {error.name} is not installed (pip install 'sirfp[zoo]')")
        return []
    return [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def in_process(library: str, name: str, args: argparse.Namespace) -> Row:
    """Measures in its own process; a crash or an exceeded limit becomes an "error"."""
    limits = {"seconds": args.seconds, "threads": args.threads, "memory": args.memory}
    return {"library": library, "model": name} | in_own_process(lambda: measure(models(library)[name]), **limits)


def measure(build: Any) -> Row:
    """Prunes one model and returns its row; an exception becomes an "error", with the stage that it came from."""
    start = time.process_time()
    row: Row = {"stage": "build"}
    try:
        torch.manual_seed(0)
        subject = build()
        model = randomised(subject.model.eval())
        row["stage"] = "prune"
        done = partial(finish, row, build, subject)
        row |= prune_to_half(model, subject.inputs, done, double=True)
    except Exception as error:  # any error of the model's own code
        row["error"] = one_line(error)
    return row | {"all_seconds": time.process_time() - start}


def finish(row: Row, build: Any, subject: Subject, pruned: nn.Module, plan: Any) -> None:
    """Counts the FLOPs of a pruned model, saves it and loads it again, and trains it for one step.

    Args:
        row: gets "stage", the last stage that was begun, "counted", the share of FLOPs that PyTorch counts, and
            "effect", the relative difference from the dense model. If it were small, being equal to the masked model
            would prove nothing.
        build: builds the model anew.
        subject: the dense model.
        pruned: the pruned model.
        plan: its plan.

    Raises:
        RuntimeError: the loaded model differs, or has no finite gradients.
    """
    row["effect"] = compare(subject.model, pruned, subject.inputs).relative
    row["stage"] = "count"
    row["counted"] = counted_flops(pruned, subject.inputs) / max(1, counted_flops(subject.model, subject.inputs))
    row["stage"] = "load"
    torch.manual_seed(1)
    again = build().model.eval()
    with tempfile.TemporaryDirectory() as folder:
        sirfp.save(Path(folder) / "small.safetensors", pruned, plan)
        sirfp.load(Path(folder) / "small.safetensors", again)
    difference = compare(pruned, again, subject.inputs)
    if difference.problem or not difference.relative < RELOADED:
        raise RuntimeError(difference.problem or f"loaded, {difference.where} differs by {difference.relative:.0e}")
    row["stage"] = "train"
    train_step(again, subject)
    row["stage"] = ""


def train_step(model: nn.Module, subject: Subject) -> None:
    """A forward and a backward pass in training mode, on a batch of two.

    Raises:
        RuntimeError: there are no gradients, or one is not finite.
    """
    model.train()
    output = call(model, subject.training if subject.training is not None else twice(subject.inputs))
    if subject.loss:
        loss = subject.loss(output)
    else:
        loss = sum(t.float().square().mean() for _, t in tensors(output) if t.requires_grad)
    loss.backward()
    check_gradients(model)


def verdict(row: Row) -> str:
    """One row as text."""
    if row.get("error"):
        return f"{row['model']}: {row.get('stage', '')}: {row['error']}"
    double = "" if row["double"] is None else f" ({row['double']:.0e} in double precision)"
    return (
        f"{row['model']}: {row['kept']:.3f} of FLOPs, least {row['least']:.3f}, counted {row['counted']:.3f}, "
        f"difference {row['difference']:.0e}{double}, {row['processor_seconds']:.1f} s of {row['all_seconds']:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
