"""What both tables of prunability share: a process for each model, rows that are kept, gradients that are checked."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def in_own_process(measure: Callable[[], Row], *, seconds: float, threads: int, memory: float = 0.0) -> Row:
    """What `measure` finds in a silent process of its own, forked, as a fresh one would import for longer.

    Args:
        measure: without arguments; what it raises becomes the row's "error", as do a crash and a limit.
        seconds: the limit on time.
        threads: of PyTorch.
        memory: the limit in GiB, 0 for none.
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
    except Exception as error:  # whatever a model's own code raises
        found = {"error": one_line(error)}
    sender.send(found)


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    text = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {text}"


def check_gradients(model: nn.Module) -> None:
    """Looks at the gradients of a backward pass.

    Raises:
        RuntimeError: a gradient is missing everywhere or not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(torch.isfinite(g).all() for g in gradients):
        raise RuntimeError("gradients are not finite after pruning")
