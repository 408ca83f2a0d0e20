"""The runtimes that a model's latency is measured in.

| name | what is timed |
| --- | --- |
| eager | the model in PyTorch as its users call it |
| channels-last | the same with weights and images in channels-last memory |
| bfloat16 | the same under autocast to bfloat16, in channels-last memory |
| compiled | the graph that `sirfp export` writes, by `torch.compile`, in channels-last memory |
| onnxruntime | the ONNX file of it, size and batch fixed |
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..network.forward import call, inference
from ..network.latency import Latency, in_turns, synchronizer

RUNTIMES = ("eager", "channels-last", "bfloat16", "compiled", "onnxruntime")
GRAPHS = ("compiled", "onnxruntime")
"""Those that take a model as a function of one tensor."""


def ready(runtime: str, model: nn.Module, inputs: Any, folder: Path, threads: int | None = None) -> Callable[[], Any]:
    """A model in a runtime, as a call without arguments; called once here, so that what is compiled is.

    Args:
        runtime: of `RUNTIMES`; of `GRAPHS`, `model` is called with one tensor of images (N, C, H, W).
        model: in evaluation mode.
        inputs: what it is called with.
        folder: for files.
        threads: of onnxruntime, which has its own.

    Raises:
        InputError: the model cannot be brought into the runtime.
    """
    if runtime == "onnxruntime":
        return exported(model, inputs, folder, threads)
    if runtime != "eager":
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        if isinstance(inputs, torch.Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
    kind = next((p.device.type for p in model.parameters()), "cpu")
    autocast = (lambda: torch.autocast(kind, torch.bfloat16)) if runtime == "bfloat16" else nullcontext
    work = torch.compile(model) if runtime == "compiled" else model

    def once() -> Any:
        with inference(model), autocast():
            return call(work, inputs)

    try:
        once()
    except Exception as error:  # the compiler's, and what layers raise for a precision that they lack
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{runtime}: {lines[0][:200]}") from error
    return once


def exported(model: nn.Module, images: torch.Tensor, folder: Path, threads: int | None = None) -> Callable[[], Any]:
    """A model as an ONNX file of fixed batch and size in onnxruntime.

    Raises:
        InputError: it cannot be exported, or a package is not installed.
    """
    from . import Session, check_packages, write_fixed

    check_packages()
    file = folder / f"{len(list(folder.iterdir()))}.onnx"
    write_fixed(model, images, file)
    session = Session(file, threads)
    return lambda: session(images)


def compare(
    networks: Mapping[str, Mapping[str, tuple[nn.Module, Any]]],
    folder: Path,
    *,
    warmup: int = 2,
    repeats: int = 11,
    threads: int | None = None,
) -> tuple[dict[str, dict[str, Latency]], dict[str, str]]:
    """Times networks in runtimes, all in turns.

    Args:
        networks: {runtime: {network: (model, inputs)}}, see `ready`.
        folder: for files.
        warmup, repeats, threads: see `latency.measure`.

    Returns:
        {runtime: {network: latency}} of those that can be, and {runtime: why not} of the others.
    """
    calls: dict[str, Callable[[], float]] = {}
    lacking: dict[str, str] = {}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)  # also what is compiled and prepared is for so many
        for runtime, models in networks.items():
            try:
                made = {
                    f"{runtime}/{name}": _timed(ready(runtime, model, inputs, folder, threads or before), model)
                    for name, (model, inputs) in models.items()
                }
            except InputError as error:
                lacking[runtime] = str(error)
            else:
                calls |= made
        taken = in_turns(calls, warmup=warmup, repeats=repeats, threads=threads)
    finally:
        torch.set_num_threads(before)
        torch.compiler.reset()
    found: dict[str, dict[str, Latency]] = {}
    for key, latency in taken.items():
        runtime, _, name = key.partition("/")
        found.setdefault(runtime, {})[name] = latency
    return found, lacking


def _timed(work: Callable[[], Any], model: nn.Module) -> Callable[[], float]:
    wait = synchronizer(model)

    def timed() -> float:
        wait()
        start = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - start

    return timed
