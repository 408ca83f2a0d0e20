"""Shared by both prunability tables: a process for each model, files of rows, a check of gradients."""

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
