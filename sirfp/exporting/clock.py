"""Times networks and their layers in onnxruntime, for budgets of latency."""

from __future__ import annotations

import json
import tempfile
from ast import literal_eval
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError, first_line, near
from ..network.batches import described
from ..network.clock import Clock, in_rounds
from ..network.untouched import copied_model
from ..sources.source import Source
from .agreement import Session
from .families import build_graph
from .runtimes import timed
from .writing import check_packages, write_fixed

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Operators of ONNX that multiply by a layer's weight."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which PyTorch's exporter names the modules that an operator comes from, outermost first."""
KERNEL = "_kernel_time"
BLOCKED = "_nchwc"
"""What onnxruntime adds to the name of an operator that it runs in blocks of channels. It then names the operator after
the value that it computes, which is that of the last operator joined to it."""


@dataclass(frozen=True)
class OnnxRuntimeClock(Clock):
    """onnxruntime on the CPU, in float32: the file that `sirfp export` writes, with fixed size and batch.

    A model of another precision, or on another device, is copied first.

    Attributes:
        threads: number of CPU threads; by default PyTorch's at the time of the measurement.
        graph: wraps a model as a function of one tensor, and returns it with its images (N, C, H, W). The wrapped
            model's layers must be modules of the model that it is given, not copies. By default a model that is
            called with one tensor is left as it is, and Detectron2's models are wrapped as for `sirfp export`.

    Example:
        sirfp.prune(model, images, keep_latency=0.6, clock=OnnxRuntimeClock(threads=2), calibration=batches)
    """

    threads: int | None = None
    graph: Callable[[nn.Module, Any], tuple[nn.Module, torch.Tensor]] | None = None
    words = "onnxruntime"

    def prepare(self, model: nn.Module, inputs: Any) -> Callable[[], float]:
        with self._written(model, inputs) as (file, _, images):
            session = self._session(file, images)
        return timed(partial(session, images), model)

    def layers(self, models: Iterable[nn.Module], inputs: Any, names: Mapping[str, Any]) -> np.ndarray:
        with ExitStack() as files:
            profiles = []
            for model in models:
                file, own, images = files.enter_context(self._written(model, inputs))
                layer_of = _Layers(file, {name: own[name] for name in own if own[name] in names})
                profiles.append(_Profile(self._session(file, images, profile=str(file)), images, layer_of))
            rounds = in_rounds([profile.call for profile in profiles])
            return np.stack([profile.layers(names, rounds) for profile in profiles])

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _session(self, file: Path, images: torch.Tensor, profile: str | None = None) -> Session:
        """Reads a file and runs it once.

        Raises:
            InputError: onnxruntime cannot read the file or cannot run it.
        """
        try:
            session = Session(file, self._threads, profile)
            session(images)
        except Exception as error:  # onnxruntime's classes of errors have no common base
            raise InputError(f"onnxruntime cannot run this model: {first_line(error)}") from error
        return session

    @contextmanager
    def _written(self, model: nn.Module, inputs: Any) -> Iterator[tuple[Path, dict[str, str], torch.Tensor]]:
        """Writes a model to a file that is there within the context.

        Yields:
            The file, {name of a module within the module that was written: its name in the model}, and the images.

        Raises:
            InputError: a package is missing, the model is not called with one tensor, or cannot be exported.
        """
        check_packages()
        if not all(map(_is_plain, (*model.parameters(), *model.buffers()))):
            model = copied_model(model).float().cpu()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            training = {part: part.training for part in model.modules()}
            try:
                with torch.autocast("cpu", enabled=False):
                    module, images = (self.graph or as_graph)(model, inputs)
                    images = images.detach().cpu()
                    images = images.float() if images.is_floating_point() else images
                    write_fixed(module, images, file)
            finally:
                for part, mode in training.items():
                    part.training = mode
            known = {id(part): name for name, part in model.named_modules()}
            yield file, {n: known[id(part)] for n, part in module.named_modules() if id(part) in known}, images


def _is_plain(tensor: torch.Tensor) -> bool:
    """True for what onnxruntime computes with: numbers of single precision, and integers, on the CPU."""
    return tensor.device.type == "cpu" and (tensor.dtype == torch.float32 or not tensor.is_floating_point())


CLOCKS: dict[str, Callable[[], Clock | None]] = {"pytorch": lambda: None, "onnxruntime": OnnxRuntimeClock}
"""{name of a runtime on the command line and in configs: makes its clock}; None for the default."""


def clock_named(name: str, where: str) -> Clock | None:
    """Returns the clock of a runtime; None for PyTorch, the default.

    Args:
        name: a name of `CLOCKS`.
        where: the config key or flag that names it, for the message.

    Raises:
        InputError: there is no runtime of this name, or its package is not installed.
    """
    if name not in CLOCKS:
        raise InputError(f"{where} must be {' or '.join(CLOCKS)}, got {name!r}{near(name, CLOCKS)}")
    clock = CLOCKS[name]()
    if clock is not None:
        check_packages()
    return clock


def as_graph(model: nn.Module, inputs: Any) -> tuple[nn.Module, torch.Tensor]:
    """Returns a model as a function of one tensor, and its images (N, C, H, W).

    Args:
        model: a model that is called with one tensor, or one of Detectron2 that is called with `list[dict]`.
        inputs: its inputs.

    Raises:
        InputError: it is called with something else, or is a model of Detectron2 that cannot be exported.
    """
    if isinstance(inputs, torch.Tensor):
        return model, inputs
    if not (isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) and "image" in inputs[0]):
        raise InputError(
            "onnxruntime times models that are called with one tensor and Detectron2's, not with "
            f"{described(inputs)}: give OnnxRuntimeClock a graph"
        )
    images = torch.stack([one["image"] for one in inputs]).float()
    height, width = images.shape[-2:]
    return build_graph(Source(type(model).__name__, model, (height, width)), model), images


class _Profile:
    """Times the operators of a file by onnxruntime's profiler.

    Args:
        session: runs the file, with a profile.
        images: the images of each call.
        layer_of: finds the layer of an operator.
    """

    def __init__(self, session: Session, images: torch.Tensor, layer_of: _Layers):
        self.session, self.layer_of = session, layer_of
        self.call = timed(partial(session, images), nn.Identity())

    def layers(self, names: Iterable[str], rounds: int) -> np.ndarray:
        """Returns the seconds of each layer in one call and, last, of all else, (layers + 1,), and ends the profile.

        Args:
            names: the names of the layers.
            rounds: the number of calls, the last ones, that count.
        """
        events = json.loads(Path(self.session.session.end_profiling()).read_text())
        whole = np.array([event["dur"] for event in events if event["name"] == "model_run"])
        nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)]
        spent = np.array([event["dur"] for event in nodes]).reshape(len(whole), -1)  # (calls, operators)
        seconds: dict[str | None, float] = dict.fromkeys([*names, None], 0.0)  # None: no layer's
        for event, times in zip(nodes, spent[-rounds:].T, strict=False):
            layer = self.layer_of(event["name"].removesuffix(KERNEL), event["args"]["op_name"])
            seconds[layer] += float(times.min())
        seconds[None] += float((whole - spent.sum(1))[-rounds:].min())
        return np.array(list(seconds.values())) / 1e6


class _Layers:
    """Finds the layer whose time an operator of onnxruntime's profile takes.

    Products (convolutions, matrix products) belong to the layer whose weight they read. Other operators belong to the
    innermost layer that they come from, such as a norm with its activation. onnxruntime joins additions and activations
    to convolutions; a joined operator is a convolution's.

    Args:
        file: the ONNX file.
        names: {name of a layer in the module that was written: name to return}.
    """

    def __init__(self, file: Path, names: Mapping[str, str]):
        import onnx

        self.names = names
        nodes = onnx.load(str(file), load_external_data=False).graph.node
        self.named = {node.name: node for node in nodes}
        self.made = {value: node for node in nodes for value in node.output}
        self.taken: dict[str, set[str]] = defaultdict(set)

    def __call__(self, name: str, operator: str) -> str | None:
        """Returns the layer of an operator, by its name and kind in the profile; None for the rest of the model."""
        name = name.removesuffix(BLOCKED).partition("/")[0]
        node = self.named.get(name) or self.made.get(name)
        if node is None:
            return None
        if any(kind in operator for kind in PRODUCTS):
            node = self._product(node) or node
        return self._by_weight(node) or self._by_scope(node)

    def _product(self, node: Any) -> Any:
        """Returns the product that a joined operator begins with: the nearest one that no other operator is."""
        near, seen = [node], set()
        while near:
            here = near.pop(0)
            if here.name in seen:
                continue
            seen.add(here.name)
            if here.op_type in PRODUCTS:
                if node.name in self.taken[here.name] or not self.taken[here.name]:
                    self.taken[here.name].add(node.name)
                    return here
                continue  # another operator of the profile has this product
            near += [self.made[value] for value in here.input if value in self.made]
        return None

    def _by_weight(self, node: Any) -> str | None:
        weights = (value.removesuffix(".weight") for value in node.input if value.endswith(".weight"))
        return next((self.names[weight] for weight in weights if weight in self.names), None)

    def _by_scope(self, node: Any) -> str | None:
        entries = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        scopes: list[str] = literal_eval(entries[0]) if entries else []
        return next((self.names[scope] for scope in reversed(scopes) if scope in self.names), None)
