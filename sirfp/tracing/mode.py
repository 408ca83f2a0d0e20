"""The dispatch mode under which a model runs once while its channels are followed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .labels import Array, Consumer, Dims, Labels, Product, Tap
from .pointwise import pointwise
from .table import COUNTED, RULES, STATISTICS

logger = logging.getLogger(__name__)

# Operations that make tensors no channel flows into, whatever labelled tensor they are called on.
_UNLABELLED = frozenset(
    f"aten::{name}"
    for name in [
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_empty_strided",
        "size",
        "sym_size",
        "stride",
        "storage_offset",
        "_local_scalar_dense",
        "is_same_size",
        "equal",
        "allclose",
        "numel",
    ]
)


class ChannelTrace(TorchDispatchMode):
    """Sees every ATen operation with its real tensors and applies the rule for it.

    Labels hang on tensors by weak references, so an identity that Python uses again carries none.
    Without a rule the labels of all inputs are frozen: safe by construction.

    Args:
        state: the model's parameters and floating-point buffers by name; each gets fresh labels on
            every dimension longer than one.
        regrouped: names of the weights of group norms whose number of groups can follow a cut.

    Raises:
        RuntimeError: no rule is registered, so that every channel would be frozen; import `sirfp.tracing`.
    """

    def __init__(self, state: dict[str, torch.Tensor], regrouped: Iterable[str] = ()):
        if "aten::convolution" not in RULES:
            raise RuntimeError("the table of rules is empty: import sirfp.tracing, which imports the modules of rules")
        super().__init__()
        self.regrouped = frozenset(regrouped)
        self.labels = Labels()
        self.products: list[Product] = []
        self.statistics: list[tuple[str, tuple[int, ...], Dims]] = []  # over what shape each ran
        self.taps: list[Tap] = []
        self.consumers: list[Consumer] = []
        self.normed: list[tuple[torch.Tensor, Consumer | None]] = []  # running mean, what made the norm's input
        self.touched: set[str] = set()
        self.counting = True  # products and statistics are logged on the inference pass only
        self._dims = WeakTensorKeyDictionary()
        self._emitted = WeakTensorKeyDictionary()  # tensor -> (channel dimension, (C,) constants)
        self._names = WeakTensorKeyDictionary()
        self._when_read = WeakTensorKeyDictionary()  # tensor -> (labels, reason) to freeze once anything reads it
        self._made_by = WeakTensorKeyDictionary()  # output of a convolution -> its Consumer
        self._functions = _FunctionWatch()
        self.state_dims: dict[str, Dims] = {}
        for name, tensor in state.items():
            dims = [self.labels.fresh(n) if n > 1 else None for n in tensor.shape]
            self.state_dims[name] = dims
            self._dims[tensor] = dims
            self._names[tensor] = name

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler on the first call, which takes seconds

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *exc):
        super().__exit__(*exc)
        self._functions.__exit__(*exc)

    @property
    def pooling(self) -> int:
        """Whether the operation is a part of F.adaptive_avg_pool2d, which fvcore counts."""
        return self._functions.pooling

    # ---- what rules use -------------------------------------------------------------------------
    def dims(self, tensor: Any) -> Dims:
        """Labels of each dimension of a tensor; all None where nothing is known of it."""
        known = self._dims.get(tensor)
        return known if known is not None else [None] * tensor.dim()

    def dim(self, tensor: torch.Tensor, index: int) -> Array | None:
        return self.dims(tensor)[index]

    def set(self, tensor: torch.Tensor, dims: Dims) -> None:
        """Gives a result its labels; a dimension of length one never carries any."""
        if len(dims) != tensor.dim():
            raise AssertionError(f"{len(dims)} label arrays for {tensor.dim()} dimensions")
        for index, labels in enumerate(dims):
            if labels is not None and len(labels) != tensor.shape[index]:
                raise AssertionError(f"{len(labels)} labels for dimension {index} of {tuple(tensor.shape)}")
        dims = [None if n == 1 else a for n, a in zip(tensor.shape, dims, strict=True)]
        if any(a is not None for a in dims):
            self._dims[tensor] = dims
        elif tensor in self._dims:
            del self._dims[tensor]

    def emitted(self, tensor: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        return self._emitted.get(tensor)

    def set_emitted(self, tensor: torch.Tensor, dim: int, constants: torch.Tensor | None) -> None:
        if constants is not None and len(constants) == tensor.shape[dim]:
            self._emitted[tensor] = (dim % tensor.dim(), constants)

    def name(self, tensor: Any) -> str | None:
        """The name of a parameter or buffer, None of any other tensor."""
        return self._names.get(tensor) if isinstance(tensor, torch.Tensor) else None

    def when_read(self, tensor: torch.Tensor, labels: Array | None, reason: str) -> None:
        """Freezes labels for a reason as soon as an operation reads the tensor, or the model returns it."""
        self._when_read[tensor] = (labels, reason)

    def is_state(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor in self._names

    def count(self, op: str, factor: float, *sides: Array | None) -> None:
        if self.counting:
            self.products.append(Product(op, float(factor), tuple(s for s in sides if s is not None)))

    def reads(self, output: torch.Tensor, weight: torch.Tensor, labels: Array, emitted: Any, groups: int = 1) -> None:
        """Notes that a layer read channels, and what they would emit, (I,) or None, to give its output."""
        if emitted is None:
            emitted = torch.full((len(labels),), torch.nan, device=weight.device)
        self.consumers.append(Consumer(weight, labels, emitted, groups))
        self._made_by[output] = self.consumers[-1]

    def maker(self, tensor: torch.Tensor) -> Consumer | None:
        return self._made_by.get(tensor)

    def freeze_tensors(self, tensors: Any, reason: str) -> None:
        for tensor in tensors:
            for labels in self.dims(tensor):
                self.labels.freeze(labels, reason)
            self.labels.freeze(*self._when_read.get(tensor, (None, "")))

    # ---- the pass -------------------------------------------------------------------------------
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for tensor in inputs:
            name = self._names.get(tensor)
            if name is not None:
                self.touched.add(name)
            self.labels.freeze(*self._when_read.get(tensor, (None, "")))
        known = [t for t in inputs if t in self._dims]
        into_a_part = func._schema.is_mutable and inputs and inputs[0]._is_view() and inputs[0] not in self._dims
        name = func._schema.name
        if self.counting and name in STATISTICS:
            self.statistics.append((name, tuple(args[0].shape), self.dims(args[0])))
        out = func(*args, **kwargs)
        if name in _UNLABELLED or (not known and name not in RULES):
            return out
        if not known and name not in COUNTED:
            return out
        if into_a_part and known:
            self.freeze_tensors(known, f"{name} writes into a part of another tensor")
            return out
        rule = RULES.get(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = pointwise
        if rule is None:
            self.freeze_tensors(known, f"{name} has no rule")
            return out
        for consumer in filter(None, map(self.maker, inputs)):
            consumer.readers += 1
        written = [t for t in (inputs[0], inputs[0]._base) if t is not None] if func._schema.is_mutable else []
        emitted = [self.emitted(t) for t in written]
        try:
            rule(self, func, args, kwargs, out)
        except Exception as error:  # a use that nobody thought of is a reason, not an end
            logger.debug("the rule for %s failed on %s: %s", name, [tuple(t.shape) for t in inputs], error)
            self.freeze_tensors(known, f"{name} is used in a way its rule does not know")
        for tensor, before in zip(written, emitted, strict=True):
            if before is not None and self.emitted(tensor) is before:  # it holds something else now
                del self._emitted[tensor]
        return out


class _FunctionWatch(TorchFunctionMode):
    """Notes the functions whose name is lost before ATen: fvcore counts adaptive pooling, not a mean."""

    def __init__(self):
        super().__init__()
        self.pooling = 0  # how deep inside

    def __torch_function__(self, func, types, args=(), kwargs=None):
        pooling = func is torch._C._nn.adaptive_avg_pool2d or func is torch.nn.functional.adaptive_avg_pool2d
        self.pooling += pooling
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.pooling -= pooling
