"""Runtimes in which a model's latency can be measured.

| name | timed call |
| --- | --- |
| eager | the model in PyTorch, with its usual inputs |
| channels-last | as eager, with weights and images in channels-last memory format |
| bfloat16 | as channels-last, under autocast to bfloat16 |
| compiled | the graph that `sirfp export` writes, under `torch.compile`, in channels-last memory format |
| onnxruntime | the ONNX file of this graph, with fixed size and batch |
| openvino | the same file, in float32 |
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, one_line
from ..network.forward import call, inference
from ..network.latency import Latency, in_turns, synchronizer
from ..network.untouched import copied_model

RUNTIMES = ("eager", "channels-last", "bfloat16", "compiled", "onnxruntime", "openvino")
GRAPH_RUNTIMES = ("compiled", "onnxruntime", "openvino")
"""Runtimes for which the model must be a function of one tensor (`sirfp.exporting.Graph`)."""


def prepare_call(
    runtime: str, model: nn.Module, inputs: Any, folder: Path, threads: int | None = None
) -> Callable[[], Any]:
    """Prepares a model in a runtime as a function without arguments; calls the function once, to trigger compilation.

    Args:
        runtime: one of `RUNTIMES`.
        model: the model, in evaluation mode. For `GRAPH_RUNTIMES` it takes one tensor of images (N, C, H, W).
        inputs: argument of each call.
        folder: folder for files.
        threads: number of CPU threads for onnxruntime and OpenVINO, which ignore PyTorch's setting.

    Raises:
        InputError: the model cannot be run in this runtime.
    """
    if runtime == "onnxruntime":
        return onnxruntime_call(model, inputs, folder, threads)
    if runtime == "openvino":
        return openvino_call(model, inputs, folder, threads)
    if runtime != "eager":
        model = copied_model(model).to(memory_format=torch.channels_last)
        if isinstance(inputs, torch.Tensor) and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
    kind = next((p.device.type for p in model.parameters()), "cpu")
    autocast = (lambda: torch.autocast(kind, torch.bfloat16)) if runtime == "bfloat16" else nullcontext
    network: Any = torch.compile(model) if runtime == "compiled" else model

    def once() -> Any:
        with inference(model), autocast():
            return call(network, inputs)

    try:
        once()
    except Exception as error:  # any class: the compiler raises its own errors, layers without bfloat16 others
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{runtime}: {lines[0][:200]}") from error
    return once


def onnxruntime_call(
    model: nn.Module, images: torch.Tensor, folder: Path, threads: int | None = None
) -> Callable[[], Any]:
    """Writes a model to an ONNX file of fixed batch and size; returns a function that runs it in onnxruntime.

    Raises:
        InputError: the model cannot be exported, or a package is not installed.
    """
    from . import Session

    session = Session(_fixed_file(model, images, folder), threads)
    return lambda: session(images)


def openvino_call(
    model: nn.Module, images: torch.Tensor, folder: Path, threads: int | None = None
) -> Callable[[], Any]:
    """Writes a model to an ONNX file of fixed batch and size; returns a function that runs it in OpenVINO on the CPU.

    OpenVINO would compute in bfloat16 on processors that have it; here it computes in float32, as the others do.

    Raises:
        InputError: the model cannot be exported, OpenVINO cannot read the file, or a package is not installed.
    """
    if importlib.util.find_spec("openvino") is None:
        raise InputError("openvino is not installed: pip install openvino")
    openvino: Any = importlib.import_module("openvino")  # without annotations, and not installed everywhere
    file = _fixed_file(model, images, folder)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = openvino.Core().compile_model(
            str(file), "CPU", settings | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        )
    except RuntimeError as error:
        raise InputError(f"openvino: {one_line(error, 200)}") from error
    given = images.numpy()
    return lambda: compiled(given)


def _fixed_file(model: nn.Module, images: torch.Tensor, folder: Path) -> Path:
    """Writes a model to a new ONNX file of fixed batch and size in a folder."""
    from . import check_packages, write_fixed

    check_packages()
    file = folder / f"{len(list(folder.iterdir()))}.onnx"
    write_fixed(model, images, file)
    return file


def compare(
    networks: Mapping[str, Mapping[str, tuple[nn.Module, Any]]],
    folder: Path,
    *,
    warmup: int = 2,
    repeats: int = 11,
    threads: int | None = None,
) -> tuple[dict[str, dict[str, Latency]], dict[str, str]]:
    """Measures the latency of networks in several runtimes: those of one runtime in turns, then those of the next.

    PyTorch's threads spin for some 5 ms after a call. A network that onnxruntime ran next would take nearly twice as
    long with as many threads as cores, and only the first one of each round.

    Args:
        networks: {runtime: {network: (model, inputs)}}, see `prepare_call`.
        folder: folder for files.
        warmup, repeats, threads: see `latency.measure`.

    Returns:
        {runtime: {network: latency}} for runtimes that ran all their networks; {runtime: reason} for the others.
    """
    found: dict[str, dict[str, Latency]] = {}
    failed: dict[str, str] = {}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)  # before compilation, which uses the current number
        for runtime, models in networks.items():
            try:
                calls = {
                    name: timed(prepare_call(runtime, model, inputs, folder, threads or before), model)
                    for name, (model, inputs) in models.items()
                }
            except InputError as error:
                failed[runtime] = str(error)
            else:
                found[runtime] = in_turns(calls, warmup=warmup, repeats=repeats, threads=threads)
    finally:
        torch.set_num_threads(before)
        torch.compiler.reset()
    return found, failed


def timed(work: Callable[[], Any], model: nn.Module) -> Callable[[], float]:
    """Wraps a call as a function that returns its duration in seconds, including work queued on the model's device."""
    wait = synchronizer(model)

    def once() -> float:
        wait()
        start = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - start

    return once
