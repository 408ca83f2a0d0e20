"""Shared by the prunability tables: a process for each model, files of rows, and the cut to half of the FLOPs."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sirfp.budget.allocation import allocate
from sirfp.budget.allocation import least as least_atoms
from sirfp.budget.limits import Limits
from sirfp.channels import find_groups
from sirfp.channels.double_precision import in_double
from sirfp.criteria import build_criterion
from sirfp.network.forward import call
from sirfp.prune import cut
from sirfp.structure.groups import ChannelGroups
from sirfp.structure.plan import PruningPlan
from sirfp.verify import mask
from sirfp.verify.detectors import comparison_for
from sirfp.verify.rounding import Compared, Judgement, judge

HALF = 0.5
OUTPUT = ("it is the model's output", "it is the model's output in training")
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; an empty list if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def in_own_process(measure: Callable[[], Row], *, seconds: float, threads: int, memory: float = 0.0) -> Row:
    """Runs `measure` in a forked process without output; a new process would need longer for its imports.

    Args:
        measure: a function without arguments; an exception, a crash and an exceeded limit become the row's "error".
        seconds: the time limit.
        threads: number of PyTorch's threads.
        memory: the memory limit in GiB; 0 for none.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_within, args=(sender, measure, threads, memory))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else {"error": f"more than {seconds} s"}
    except EOFError:
        process.join()
        return {"error": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _measure_within(sender: Connection, measure: Callable[[], Row], threads: int, memory: float) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    logging.disable(logging.WARNING)
    if memory:
        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        found = measure()
    except Exception as error:  # any error of the model's own code
        found = {"error": one_line(error)}
    sender.send(found)


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    text = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {text}"


def check_gradients(model: nn.Module) -> None:
    """Checks the gradients after a backward pass.

    Raises:
        RuntimeError: there are no gradients, or one is not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(torch.isfinite(g).all() for g in gradients):
        raise RuntimeError("gradients are not finite after pruning")


def prune_to_half(
    model: nn.Module,
    inputs: Any,
    finish: Callable[[nn.Module, PruningPlan], None],
    *,
    seeds: Sequence[int] = (0,),
    double: bool = False,
) -> Row:
    """Traces a network, cuts copies to half of its FLOPs by random plans, and compares them with masked networks.

    Args:
        model: the network; it stays dense.
        inputs: its inputs.
        finish: what else the first pruned network must pass, such as a step of training; raises an exception if it
            does not. It may change the network.
        seeds: one random plan for each.
        double: also compare the first pruned network in double precision. A wrong scale that the small weights of an
            untrained network hide in single precision shows there.

    Returns:
        The row: shares of FLOPs ("kept", and "least" of the smallest plan), the largest relative difference
        ("difference"), whether the outputs are equal by the judgement of `sirfp verify` ("equal"), and what rounding
        errors alone make, where the difference is above the tolerance ("rounding", else None); the same of a plan that
        keeps whole the groups that cannot be equal ("exact_difference", "exact_equal" and "exact_rounding"; if there
        are no such groups, those of all plans); the difference in double precision ("double", or None); times to find
        the groups, the numbers of groups and channels, and the frozen channels by reason.

    Raises:
        RuntimeError: the outputs cannot be compared.
    """
    start, used = time.perf_counter(), time.process_time()
    found = find_groups(model, inputs)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    dense, least = found.flops(), found.flops(fewest(found))
    by_nature = [group for group in found if group.inexact]
    compared = comparison_for(model, inputs)
    judged, exact, plans, doubled = [], [], [], None
    for seed in seeds:
        scores = build_criterion("random", model, found.groups, seed=seed).scores()
        keep = allocate(found, scores, max(HALF * dense, least), limits=Limits(partitions=()))
        masked, pruned, plan, judgement = _cut_and_compared(model, found, keep, inputs, compared)
        judged.append(judgement)
        plans.append(plan)
        if len(plans) > 1:
            continue
        doubled = difference_in_double(masked, pruned, inputs, plan, compared) if double else None
        finish(pruned, plan)
        for group in by_nature:  # a second plan keeps whole the groups that cannot be equal
            keep[found.spans[group.name]] = True
        if by_nature and not keep.all():
            exact.append(_cut_and_compared(model, found, keep, inputs, compared)[-1])
    reasons: Counter[str] = Counter()
    for part in found.frozen:
        reasons[part.reason] += part.channels
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "params": plans[0].params[0],
        "flops": dense,
        "kept": plans[-1].flops[1] / dense,
        "least": least / dense,
        "double": doubled,
        **_verdict(judged),
        **{f"exact_{key}": value for key, value in _verdict(exact if by_nature else judged).items()},
        "inexact": by_nature[0].inexact if by_nature else None,
        "groups": len(found),
        "channels": found.atoms,
        "frozen": reasons.most_common(6),
    }


def _cut_and_compared(
    model: nn.Module, found: ChannelGroups, keep: np.ndarray, inputs: Any, compared: Compared
) -> tuple[nn.Module, nn.Module, PruningPlan, Judgement]:
    """Cuts a copy to chosen atoms; returns the masked network, the cut one, the plan and whether they are equal."""
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    plan = cut(pruned, found, keep, bias_correction=False)
    mask(masked, plan)
    judged = judge(masked, pruned, inputs, plan, compared)
    if judged.difference.problem:
        raise RuntimeError(judged.difference.problem)
    return masked, pruned, plan, judged


def _verdict(judged: Sequence[Judgement]) -> Row:
    """The part of a row that says whether all comparisons are equal; of none, if none was possible."""
    if not judged:
        return {"difference": None, "equal": True, "rounding": None}
    worst = max(judged, key=lambda its: (not its.equal, its.difference.relative))
    return {"difference": worst.difference.relative, "equal": worst.equal, "rounding": worst.effect}


def difference_in_double(
    masked: nn.Module, pruned: nn.Module, inputs: Any, plan: PruningPlan, compared: Compared
) -> float | None:
    """The relative difference in double precision; None where the network's code computes in another precision.

    Raises:
        RuntimeError: the cut network does not run in double precision, or the outputs cannot be compared.
    """
    wide = in_double(masked, inputs)
    if wide is None:
        return None
    difference = compared(wide[0], copy.deepcopy(pruned).double(), wide[1], plan)
    if difference.problem:
        raise RuntimeError(f"in double precision: {difference.problem}")
    return difference.relative


def counted_flops(model: nn.Module, inputs: Any) -> int:
    """The multiply-adds of a call, by PyTorch's counter.

    The counter follows modules by hooks on gradients of their inputs. It fails where a parameter is such an input and
    gradients are off (a class token in CaiT and PiT), so parameters need no gradient while it counts. It does not
    count fused attention on a processor, nor PyTorch's fast path of `nn.MultiheadAttention`, so both are off.
    """
    needed = [p for p in model.parameters() if p.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(model.eval(), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in needed:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def fewest(found: ChannelGroups) -> np.ndarray:
    """The smallest allowed choice of atoms."""
    keep = np.zeros(found.atoms, dtype=bool)
    for group in found:
        keep[found.spans[group.name]][: least_atoms(group, Limits.min_keep)] = True
    return keep


def equal_cell(row: Row, others: str) -> str:
    """The cell of a table with a row's differences; `others` says what the second plan leaves whole."""
    exact = difference_cell(row, "exact_")
    return f"{exact}, {difference_cell(row)} with {others}".lstrip(", ") if row["inexact"] else exact


def difference_cell(row: Row, kind: str = "") -> str:
    """A difference, and what rounding errors alone make where it needs an explanation.

    Args:
        row: the row.
        kind: "" for the difference of all plans, "exact_" for that of plans without the groups that cannot be equal.
    """
    difference, effect = row[f"{kind}difference"], row[f"{kind}rounding"]
    text = "" if difference is None else f"{difference:.0e}"
    return text if effect is None else f"{text} ({effect:.0e} by rounding)"


def frozen_list(row: Row) -> str:
    """The reasons of a row's frozen channels as text, without those of the network's outputs."""
    return "; ".join(f"{n}: {short(why)}" for why, n in row.get("frozen", []) if why not in OUTPUT)


def short(text: str) -> str:
    """A text that fits into a cell of a table."""
    return text.replace("|", "/").replace("\n", " ")[:110]
